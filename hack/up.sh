#!/bin/sh
# The demo of `make up`: a one-node swarm on this host and the stack of examples/demo, nginx in front
# of a web program in three replicas that count in Redis. A second run changes nothing.
#
#   PORT=8080      the published port
#   REPLICAS=3     how many of the web program
set -eu
cd "$(dirname "$0")/.."
export PORT="${PORT:-8080}" REPLICAS="${REPLICAS:-3}"
name=demo
file=examples/demo/compose.yaml
password=examples/demo/redis-password

if [ "$(id -u)" -ne 0 ]; then
	echo "make up: run it as root (sudo make up): containers and networks need that" >&2
	exit 1
fi

# The demo runs where a user's daemon does, whatever this shell talks to, and as its file says.
unset DOCKER_HOST DOCKER_CONTEXT SKEP_HOST REGISTRY VERSION
bin/skep up -q
export DOCKER_HOST=unix:///run/skep/skep.sock

for kind in web redis nginx; do
	image=localhost/skep-demo/$kind:1
	docker image inspect "$image" >/dev/null 2>&1 && continue
	from="Debian's packages"
	[ $kind != web ] || from=cmd/demoweb
	echo "making the image $image from $from"
	tar=$(bin/mkimage "demo-$kind")
	bin/skep image load -q -i "$tar" >/dev/null
done

# Redis's password: made once, and readable by nobody else. Whole or not at all: an empty one would be deployed.
if [ ! -s $password ]; then
	(umask 077 && head -c 24 /dev/urandom | base64 >$password.new && mv $password.new $password)
fi

if bin/skep stack diff -c $file $name >/dev/null 2>&1; then
	echo "the stack $name is as $file says: nothing to change"
else
	echo "deploying the stack $name from $file"
fi
# Also when nothing changes: it waits until all runs.
bin/skep stack deploy -q --timeout 2m -c $file $name || {
	echo "make up: the stack $name does not run: see above, and bin/skep stack ps --no-trunc $name (PORT=9000 make up takes another port)" >&2
	exit 1
}

address=http://127.0.0.1:$PORT
fetch() {
	# busybox's wget crashes with -T in Debian 12.
	if command -v curl >/dev/null 2>&1; then curl -fsS --max-time 10 "$address"; else busybox wget -q -O - "$address"; fi
}

echo
echo "It answers at $address"
for _ in 1 2 3 4 5 6 7 8 9 10; do fetch; done
cat <<END

Look:  $address in a browser, or curl $address
       export DOCKER_HOST=$DOCKER_HOST PATH=$PWD/bin:\$PATH
       docker stack services $name
       skep stack ps $name
       docker service logs -f ${name}_web
       docker service scale ${name}_web=5
Next:  examples/README.md
Stop:  make down
END
