#!/bin/sh
# Makes all that compose.tls.yml needs, for a trial:
#   ./certificates.sh [DIRECTORY] [OTHER NAME OR ADDRESS OF THE SUPERLINK ...]
# A federation across institutions takes certificates from an authority that they all trust, and every
# SuperNode's owner makes its identity and hands over the .pub file alone.
set -eu
umask 077

directory=${1:-certificates}
[ $# -eq 0 ] || shift
names="DNS:superlink,DNS:localhost,IP:127.0.0.1"
for name; do
  case $name in
    *[!0-9.]*) names="$names,DNS:$name" ;;
    *) names="$names,IP:$name" ;;
  esac
done

mkdir -p "$directory"
cd "$directory"
[ ! -e ca.key ] || { echo "$directory has an authority already: remove it to start anew" >&2; exit 1; }

new_key="-newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes"

certify() { # NAME SUBJECT-ALTERNATIVE-NAMES
  # shellcheck disable=SC2086
  openssl req $new_key -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  printf 'subjectAltName=%s\n' "$2" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" \
    -out "$1.pem" 2>/dev/null
  rm "$1.csr" "$1.ext"
  # What a SuperExec shows to the service that it runs apps for.
  openssl rand -out "$1.secret" 32
}

# shellcheck disable=SC2086
openssl req -x509 $new_key -days 365 -subj "/CN=fedmt trial authority" -keyout ca.key -out ca.pem 2>/dev/null
certify superlink "$names"
for node in supernode-1 supernode-2; do
  certify "$node" "DNS:$node,DNS:localhost,IP:127.0.0.1"
  ssh-keygen -q -t ecdsa -b 384 -N "" -C "$node" -f "$node.identity"
  mv "$node.identity.pub" "$node.pub"
done
chmod 644 ./*.pem ./*.pub
