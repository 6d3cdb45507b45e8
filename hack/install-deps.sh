#!/bin/sh
# Installs the Debian packages that skep and its tests need. Says nothing and
# takes milliseconds when everything is there.
set -eu

# program that must be on PATH (or in an sbin directory) : package that brings it
NEEDS="runc:runc nft:nftables busybox:busybox-static ip:iproute2 dpkg-deb:dpkg docker-registry:docker-registry"
# runtimes that install as a bare program would hide a dynamic busybox: the test
# image needs the static one.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

missing=""
for need in $NEEDS; do
	command -v "${need%%:*}" >/dev/null 2>&1 || missing="$missing ${need#*:}"
done
case " $missing " in *" busybox-static "*) ;; *)
	# Alpine's and Debian's plain "busybox" are dynamic; only -static works in an empty image.
	if command -v dpkg-query >/dev/null 2>&1 &&
		! dpkg-query -W -f '${Status}' busybox-static 2>/dev/null | grep -q "ok installed"; then
		missing="$missing busybox-static"
	fi ;;
esac
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
	echo "install-deps: please install:$missing (this machine has no apt-get, so it cannot be done here)" >&2
	exit 1
fi
sudo=""
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null 2>&1; then
		echo "install-deps: run as root: apt-get install --no-install-recommends$missing" >&2
		exit 1
	fi
	sudo="sudo"
fi

echo "install-deps: installing$missing"
# shellcheck disable=SC2086  # one word per package
install() {
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >"$log" 2>&1
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Package lists may be missing or too old for the mirror: fetch them only when needed.
if ! install; then
	$sudo apt-get update -qq >>"$log" 2>&1 || true
	if ! install; then
		echo "install-deps: apt-get could not install$missing:" >&2
		tail -n 20 "$log" >&2
		exit 1
	fi
fi
