#!/bin/sh
# An unmodified Flower app over privet, on this machine: a coordinator, two institutions, one run.
#
#   examples/flower-over-privet/run.sh [FOLDER]        FOLDER is new; by default a temporary one, removed in the end
set -eu

here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/../../.venv/bin:$PATH"
# The app is a package as any other. Yours is installed with pip, at server and nodes; this one is one of privet's tests.
PYTHONPATH="$here/../../tests/support${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
cd "$folder" # where the app writes what it has trained
folder=$(pwd)
port=${PRIVET_EXAMPLE_PORT:-19543}
started=""

end() {
    for process in $started; do kill "$process" 2>/dev/null || true; done
    wait
    cd /
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

echo "== coordinator: a federation, the app's name, the server"
printf 'keep this one offline\n' > "$folder/passphrase"
as coordinator federation init meadow --address "localhost:$port" --passphrase-file "$folder/passphrase"
as coordinator federation allow-app quickstart plain_flower_app.server_app:app
PRIVET_HOME="$folder/coordinator" privet server > "$folder/server.log" 2>&1 &
started="$started $!"
wait_for "stop with" "$folder/server.log"

number=0
for institution in north south; do
    echo "== $institution: join, allow the app by name and by policy, run a node"
    as coordinator invite "$institution" 2> /dev/null | as "$institution" join - --yes
    : > "$folder/$institution.csv"
    as "$institution" dataset add rows --path "$folder/$institution.csv" --task synthetic \
        --declared-size 100 --epsilon 1 --delta 1e-5 # with it the ledger begins, in which the app's run is entered
    as "$institution" node allow-app quickstart plain_flower_app.client_app:app \
        --set partition-id=$number --set num-partitions=2
    as "$institution" policy allow --app quickstart --operator coordinator
    PRIVET_HOME="$folder/$institution" privet node > "$folder/$institution.log" 2>&1 &
    started="$started $!"
    number=$((number + 1))
done
for institution in north south; do wait_for "connected to" "$folder/$institution.log"; done

echo "== coordinator: a run of the app, followed to its end"
as coordinator run submit "$here/plan.toml" --follow
echo "== north: what its ledger says of it"
as north audit key > "$folder/north-key"
as north audit ledger "$folder/north/ledger.sqlite" --key "$folder/north-key"
