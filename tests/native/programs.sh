# What sanitize.sh and emulate.sh share.
cpp=src/isobit/kernels/cpu/cpp
programs="linear_test memory_test attention_test layer_test latent_test experts_test arguments_test"

# Runs commands, one a line of the input, as many at a time as there are cores. What one says comes in one piece. No more are begun
# when one has failed.
together() {
    xargs -P "$(getconf _NPROCESSORS_ONLN)" -d '\n' -n 1 bash -c '
        if said=$(eval "$0" 2>&1); then [ -z "$said" ] || printf "%s\n" "$said"; else printf "%s\nfailed: %s\n" "$said" "$0" >&2; exit 255; fi'
}

# compile FOLDER LIBRARY COMPILER [FLAG]...: the native tests, into the folder
compile() {
    local folder=$1 library=$2 program
    shift 2
    mkdir -p "$folder"
    for program in $programs; do
        echo "$* -std=c++17 -g -Wall -Wextra -I$cpp -pthread tests/native/$program.cpp $PWD/$library -o $folder/$program"
    done | together
}
