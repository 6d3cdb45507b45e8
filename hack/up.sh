#!/bin/sh
# The demo of `make up`: a one-node swarm on this host and a real nginx in three
# replicas behind one port. A second run changes nothing.
#
#   PORT=8080      the published port
#   REPLICAS=3     how many
set -eu
cd "$(dirname "$0")/.."
PORT=${PORT:-8080}
REPLICAS=${REPLICAS:-3}
name=web
image=nginx:1

if [ "$(id -u)" -ne 0 ]; then
	echo "make up: run it as root (sudo make up): containers and networks need that" >&2
	exit 1
fi

# The demo runs where a user's daemon does, whatever this shell talks to.
unset DOCKER_HOST DOCKER_CONTEXT SKEP_HOST
bin/skep up
export DOCKER_HOST=unix:///run/skep/skep.sock

if ! docker service inspect "$name" >/dev/null 2>&1; then
	if ! docker image inspect "$image" >/dev/null 2>&1; then
		echo "making the image $image from Debian's packages"
		bin/skep image load -q -i "$(bin/mkimage nginx)" >/dev/null
	fi
	echo "starting the service $name: $REPLICAS × $image on port $PORT"
	docker service create -d -q --name "$name" --replicas "$REPLICAS" --publish "$PORT:80" "$image" >/dev/null
fi

# The port that is published may be another one, from an earlier run.
PORT=$(docker service inspect --format '{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}' "$name")
address="http://127.0.0.1:$PORT"
fetch() {
	if command -v curl >/dev/null 2>&1; then curl -fsS --max-time 5 "$1"; else busybox wget -q -T 5 -O - "$1"; fi
}

tries=0
until [ "$(docker service ls --filter "name=$name" --format '{{.Name}} {{.Replicas}}' | sed -n "s/^$name //p")" = "$REPLICAS/$REPLICAS" ] &&
	fetch "$address/" >/dev/null 2>&1; do
	tries=$((tries + 1))
	if [ $tries -gt 300 ]; then
		echo "make up: the service did not come up within a minute:" >&2
		docker service ps --no-trunc "$name" >&2
		exit 1
	fi
	sleep 0.2
done

echo
echo "It answers at $address"
for _ in 1 2 3 4 5; do fetch "$address/"; done | sort | uniq -c
cat <<EOF

Try:   curl $address
       export DOCKER_HOST=$DOCKER_HOST
       docker service ps $name
       docker service scale $name=5
       docker service logs -f $name
Stop:  make down
EOF
