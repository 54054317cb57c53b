#!/usr/bin/env bash
# Tries what is in deploy/; README.md says more.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { echo "deploy: $*" >&2; }
die() {
    say "$@"
    exit 1
}
step() { printf -- '--- %s (%s s)\n' "$*" "$SECONDS"; }

export DEBIAN_FRONTEND=noninteractive
apt_updated=
# Installs Debian packages where that is possible; what is still missing then, the checks after it say.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    apt_update
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >/dev/null || true
}
apt_update() {
    [ -n "$apt_updated" ] || apt-get -o DPkg::Lock::Timeout=300 update -qq >/dev/null || true
    apt_updated=1
}

work=$(mktemp -d)
driver=
cleanup() {
    # The driver ends its own processes and pods when it is told to end.
    if [ -n "$driver" ] && kill -TERM "$driver" 2>/dev/null; then
        wait "$driver" || true
    fi
    if [ -f "$work/state/storage.conf" ] && command -v podman >/dev/null; then
        in_podman system reset --force >/dev/null 2>&1 || true
    fi
    rm -rf --one-file-system -- "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -m 755 "$work/state" "$work/bin"
# Users of containers go through it.
chmod 755 "$work"

# --- Python ---------------------------------------------------------------------------------------------------

python_ready() {
    python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}
python_ready || apt_install python3 python3-venv
python_ready || die "python3 3.10 or newer is missing, with venv and ensurepip (packages python3, python3-venv)"
step "packages of requirements.txt"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPYCACHEPREFIX="$work/pycache"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --requirement "$here/requirements.txt"
export PATH="$work/venv/bin:$PATH"

# --- Prometheus: into the temporary folder, so that no service is started ----------------------------------------

if ! command -v promtool >/dev/null || ! command -v prometheus >/dev/null; then
    if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        step "Prometheus"
        [ "$(id -u)" != 0 ] || apt_update
        (cd "$work" && apt-get download -qq prometheus >/dev/null 2>&1 && dpkg-deb -x prometheus_*.deb prometheus) || true
        export PATH="$PATH:$work/prometheus/usr/bin"
    fi
fi
command -v promtool >/dev/null || die "promtool and prometheus are missing (package prometheus)"

# Without it, the cases about units say so.
command -v systemd-analyze >/dev/null || apt_install systemd

# --- podman -----------------------------------------------------------------------------------------------------

DEPLOY_NO_PODMAN=
if [ "$(id -u)" != 0 ]; then
    DEPLOY_NO_PODMAN="pods are run as root only"
else
    tools=(podman runc nsenter)
    for tool in "${tools[@]}"; do
        if ! command -v "$tool" >/dev/null; then
            step "podman"
            apt_install podman buildah runc iptables catatonit util-linux
            break
        fi
    done
    for tool in "${tools[@]}"; do
        command -v "$tool" >/dev/null || DEPLOY_NO_PODMAN="$tool is missing (packages podman, runc, util-linux)"
    done
    command -v busybox >/dev/null || apt_install busybox-static
fi
DEPLOY_BUSYBOX=$(command -v busybox || true)
in_podman() {
    CONTAINERS_CONF="$work/state/containers.conf" CONTAINERS_STORAGE_CONF="$work/state/storage.conf" podman "$@"
}

# Everything podman makes goes into the temporary folder. The limits are the host's own: where raising them is not
# permitted, the defaults of podman keep every container from starting. crun cannot do with hybrid cgroups, runc can.
files=$(ulimit -Hn)
[ "$files" != unlimited ] && [ "$files" -lt 20000 ] || files=20000
cat >"$work/state/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
[engine]
runtime = "runc"
END
use_storage() {
    cat >"$work/state/storage.conf" <<END
[storage]
driver = "$1"
runroot = "$work/podman-run"
graphroot = "$work/podman"
END
}
# Builds and runs something small; prints why it does not work.
# shellcheck disable=SC2069  # what it complains of, not what it prints
try_podman() {
    mkdir -p "$work/probe"
    cp "$DEPLOY_BUSYBOX" "$work/probe/busybox" || return
    printf 'FROM scratch\nCOPY busybox /bin/true\n' >"$work/probe/Containerfile"
    { in_podman build --quiet --tag localhost/probe "$work/probe" &&
        in_podman run --rm --network=none localhost/probe /bin/true; } 2>&1 >/dev/null
}
if [ -z "$DEPLOY_NO_PODMAN" ] && [ -z "$DEPLOY_BUSYBOX" ]; then
    DEPLOY_NO_PODMAN="busybox is missing (package busybox-static)"
fi
if [ -z "$DEPLOY_NO_PODMAN" ]; then
    use_storage overlay
    if ! try_podman >/dev/null; then
        # Where the temporary folder is an overlay itself.
        rm -rf "$work/podman" "$work/podman-run"
        use_storage vfs
        cannot=$(try_podman) || DEPLOY_NO_PODMAN="podman does not work here: ${cannot##*$'\n'}"
    fi
fi

# --- bearerd: the static binary of the image ----------------------------------------------------------------------

# Builds the image by its Containerfile, and takes the binary out of it. The toolchain of this machine stands in for the
# image that the Containerfile would fetch from a registry: an image of nothing, into which it is mounted.
build_in_image() {
    mkdir -p "$work/rust" "$1"
    printf 'FROM scratch\nENV PATH=/toolchain/bin:/usr/bin:/bin CARGO_HOME=/cargo CARGO_NET_OFFLINE=true\n' \
        >"$work/rust/Containerfile"
    in_podman build --quiet --tag localhost/rust:host "$work/rust" >/dev/null
    local mounts=(-v /usr:/usr:ro -v /etc/alternatives:/etc/alternatives:ro -v "$1:/bearerd/target")
    mounts+=(-v "$(rustc --print sysroot):/toolchain:ro" -v "${CARGO_HOME:-$HOME/.cargo}:/cargo")
    local folder
    for folder in bin lib lib64; do
        [ ! -d "/usr/$folder" ] || mounts+=(-v "/usr/$folder:/$folder:ro")
    done
    (cd "$root" && cargo fetch --locked --quiet)
    in_podman build --quiet --network=none "${mounts[@]}" --build-arg RUST_IMAGE=localhost/rust:host \
        --file "$root/deploy/image/Containerfile" --tag localhost/bearerd:built "$root" >/dev/null
    cp "$(in_podman image mount localhost/bearerd:built)/bearerd" "$work/bin/bearerd"
    in_podman image unmount localhost/bearerd:built >/dev/null
}

if [ -n "${BEARERD_BIN:-}" ]; then
    [ -x "$BEARERD_BIN" ] || die "$BEARERD_BIN is not an executable"
    cp "$BEARERD_BIN" "$work/bin/bearerd"
else
    command -v cargo >/dev/null || die "cargo is missing; or name a static binary with BEARERD_BIN"
    target_folder=${CARGO_TARGET_DIR:-$root/target}
    if [ -z "$DEPLOY_NO_PODMAN" ]; then
        step "the image, built by its Containerfile"
        build_in_image "$target_folder/image"
    else
        step "the static binary"
        target=$(rustc --print host-tuple)
        (cd "$root" && RUSTFLAGS='-C target-feature=+crt-static' \
            cargo build --release --locked --quiet --bin bearerd --target "$target")
        cp "$target_folder/$target/release/bearerd" "$work/bin/bearerd"
    fi
fi
chmod 755 "$work/bin/bearerd"

export BEARERD_BIN="$work/bin/bearerd" DEPLOY_STATE="$work/state" DEPLOY_NO_PODMAN DEPLOY_BUSYBOX
step "cases"
# In the background, so that the traps above run while it does.
"$work/venv/bin/python" "$here/run.py" "$@" &
driver=$!
code=0
wait "$driver" || code=$?
driver=
step "done"
exit "$code"
