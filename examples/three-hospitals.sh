#!/bin/sh
# A whole federation on this machine: a coordinator, three hospitals, a private run, its model, an audit.
# Every party has a folder of its own; what passes between them passes over mutual TLS on loopback.
#
#   examples/three-hospitals.sh [FOLDER]        FOLDER is new; by default a temporary one, removed in the end
set -eu

here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/../.venv/bin:$PATH"
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
port=${PRIVET_EXAMPLE_PORT:-19443}
started=""

end() {
    for process in $started; do kill "$process" 2>/dev/null || true; done
    wait
    if [ $# -eq 0 ]; then rm -rf "$folder"; fi
}
if [ $# -gt 0 ]; then trap 'end keep' EXIT; else trap 'end' EXIT; fi
trap 'exit 1' INT TERM

as() { # as PARTY COMMAND…: the party's home is its folder
    party=$1
    shift
    PRIVET_HOME="$folder/$party" privet "$@"
}

wait_for() { # wait_for TEXT FILE: until the line is there
    count=0
    until grep -q "$1" "$2" 2>/dev/null; do
        count=$((count + 1))
        if [ "$count" -gt 600 ]; then echo "never '$1' in $2" >&2; cat "$2" >&2; exit 1; fi
        sleep 0.1
    done
}

python "$here/three_hospitals_data.py" "$folder/data"

echo "== coordinator: a federation, and its server"
printf 'keep this one offline\n' > "$folder/passphrase"
as coordinator federation init hearts --address "localhost:$port" --passphrase-file "$folder/passphrase"
PRIVET_HOME="$folder/coordinator" privet server > "$folder/server.log" 2>&1 &
started="$started $!"
wait_for "stop with" "$folder/server.log"

for hospital in st-marys charite karolinska; do
    echo "== $hospital: join, offer a data set, permit a study, run a node"
    as coordinator invite "$hospital" 2> /dev/null | as "$hospital" join - --yes
    as "$hospital" dataset add ward7 --path "$folder/data/$hospital.csv" --task digits \
        --declared-size 599 --epsilon 10 --delta 1e-4
    as "$hospital" policy allow --task digits --dataset ward7 --operator coordinator --epsilon 6 --min-nodes 3
    PRIVET_HOME="$folder/$hospital" privet node > "$folder/$hospital.log" 2>&1 &
    started="$started $!"
done
for hospital in st-marys charite karolinska; do wait_for "connected to" "$folder/$hospital.log"; done

echo "== coordinator: a private run, followed to its end"
as coordinator node list
as coordinator run submit "$here/three-hospitals.toml" --follow
run=$(as coordinator run list --json | python -c 'import json, sys; print(json.load(sys.stdin)[0]["run_id"])')
as coordinator run model "$run" -o "$folder/model.safetensors"

echo "== st-marys: the model that it helped to train, and what it cost"
as st-marys node model "$run" -o "$folder/st-marys-model.safetensors"
as st-marys budget show
as coordinator audit witness st-marys -o "$folder/st-marys-witness.jsonl"
as st-marys audit key > "$folder/st-marys-key"
as st-marys audit ledger "$folder/st-marys/ledger.sqlite" --key "$folder/st-marys-key" \
    --witness "$folder/st-marys-witness.jsonl" --root "$folder/st-marys/identity/root.pem"
