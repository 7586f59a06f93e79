# What the scripts beside this one check before they start any process: each fault is one line and exit code 2.

# whole_number NAME VALUE LOWEST [HIGHEST]
whole_number() {
    local range="of at least $3"
    if [ $# -gt 3 ]; then
        range="from $3 to $4"
    fi
    # At most nine digits, so that no arithmetic of the shell's overflows; 10# as 08 is no octal number.
    if [[ ! $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3)) || ((10#$2 > ${4:-10#$2})); then
        echo "error: $1 is '$2'; expected a whole number $range" >&2
        exit 2
    fi
}

# config_file PATH
config_file() {
    if [ ! -f "$1" ]; then
        echo "error: config file $1: there is no such file; check the path" >&2
        exit 2
    fi
}
