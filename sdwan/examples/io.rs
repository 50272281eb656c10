//! Ways to move packets and datagrams in one piece, beside each other: this crate's own calls, tun-rs, quinn-udp.
//!
//! `cargo run --release -p sdwan --example io [SECONDS [ROUNDS]]`, as root, with iperf3: prints a table of medians.
//! Packets go between two TUN devices in namespaces of its own, cut and joined on the way; datagrams go over loopback.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement meets the clock, and prints what came of it"
)]

use std::error::Error;
use std::io::{BufRead as _, BufReader, ErrorKind, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use sdwan::io::{tun::Tun, udp::Udp};
use sdwan::offload::{Coalescer, split};
use sdwan::tunnel::{Kind, Path, Train};
use tun_rs::{DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The namespaces, and the devices in them.
const SIDES: [(&str, &str, &str); 2] =
    [("skein-io-a", "skio-a", "10.99.0.1/24"), ("skein-io-b", "skio-b", "10.99.0.2/24")];
/// What a device has as its MTU: an overlay's.
const MTU: usize = 1420;
/// A datagram that carries one such packet, and as many as go in one piece.
const DATAGRAM: usize = MTU + 32;
const TRAIN: usize = 44;
const PORTS: [u16; 2] = [47_311, 47_312];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["packets", "own"] => own_packets(),
        ["packets", _] => tun_rs_packets(),
        ["datagrams", who, seconds] => datagrams(who, seconds.parse()?),
        [] => measure(2, 5),
        [seconds] => measure(seconds.parse()?, 5),
        [seconds, rounds] => measure(seconds.parse()?, rounds.parse()?),
        _ => Err("usage: io [SECONDS [ROUNDS]]".into()),
    }
}

/// Processor seconds for each gigabyte, and gigabits in a second.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: f64,
    rate: f64,
}

fn measure(seconds: u32, rounds: usize) -> Result<()> {
    let all = [
        ("packets", "own"),
        ("packets", "tun-rs"),
        ("datagrams", "own"),
        ("datagrams", "quinn-udp"),
        ("datagrams", "std, one by one"),
    ];
    let mut costs = vec![Vec::new(); all.len()];
    for round in 0..rounds {
        for at in 0..all.len() {
            let at = (at + round) % all.len();
            let (what, who) = all[at];
            costs[at].push(if what == "packets" {
                packets(who, seconds)?
            } else {
                child_datagrams(who, seconds)?
            });
        }
    }
    println!("| what | with | CPU s/GB | Gbit/s |\n|---|---|---|---|");
    for ((what, who), costs) in all.into_iter().zip(&costs) {
        let median = |of: fn(&Cost) -> f64| {
            let mut all: Vec<f64> = costs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        println!("| {what} | {who} | {:.3} | {:.2} |", median(|c| c.cpu), median(|c| c.rate));
    }
    Ok(())
}

fn child(args: &[&str]) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?).args(args).stdout(Stdio::piped()).spawn()?)
}

fn ip(args: &str) -> Result<()> {
    let done = Command::new("ip").args(args.split(' ')).status()?;
    if done.success() { Ok(()) } else { Err(format!("ip {args}: {done}").into()) }
}

/// Namespaces that go when this is dropped, and the process that moves packets between them.
struct Pair(Child);

impl Pair {
    fn make(who: &str) -> Result<Self> {
        let mut pair = Self(child(&["packets", who])?);
        let out = pair.0.stdout.take().ok_or("no output")?;
        // It says a line once both devices are there.
        BufReader::new(out).read_line(&mut String::new())?;
        for (netns, device, address) in SIDES {
            ip(&format!("netns add {netns}"))?;
            ip(&format!("link set {device} netns {netns}"))?;
            ip(&format!("-n {netns} addr add {address} dev {device}"))?;
            ip(&format!("-n {netns} link set {device} mtu {MTU} up"))?;
        }
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // What is gone already needs no end.
        let _ = self.0.kill();
        let _ = self.0.wait();
        for (netns, ..) in SIDES {
            let _ = ip(&format!("netns del {netns}"));
        }
    }
}

fn packets(who: &str, seconds: u32) -> Result<Cost> {
    let pair = Pair::make(who)?;
    let inside = |netns: &str, args: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns, "iperf3"]).args(args.split(' '));
        command.stdout(Stdio::piped());
        command
    };
    let mut server = inside(SIDES[1].0, "-s -1").spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let before = cpu(pair.0.id())?;
    let out = inside(SIDES[0].0, &format!("-c 10.99.0.2 -J -t {seconds}")).output()?;
    let used = cpu(pair.0.id())? - before;
    server.wait()?;
    let said: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let received = &said["end"]["sum_received"];
    let number = |key: &str| received[key].as_f64().ok_or_else(|| format!("iperf3: {said}"));
    Ok(Cost { cpu: used / (number("bytes")? / 1e9), rate: number("bits_per_second")? / 1e9 })
}

/// What a process has used, in seconds (proc_pid_stat(5): fields 14 and 15, in hundredths).
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, behind) = stat.rsplit_once(')').ok_or("no name in stat")?;
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let field =
        |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).ok_or("a short stat");
    Ok((field(11)? + field(12)?) / 100.0)
}

/// Waits for one of two descriptors.
fn wait(fds: [BorrowedFd<'_>; 2]) -> Result<()> {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    poll(&mut fds, PollTimeout::from(250u16))?;
    Ok(())
}

fn own_packets() -> Result<()> {
    let mut devices = [Tun::open(SIDES[0].1)?, Tun::open(SIDES[1].1)?];
    println!("ready");
    let (mut buffer, mut arena) = (vec![0; 70_000], Vec::with_capacity(70_000));
    let mut coalescer = Coalescer::default();
    loop {
        wait(devices.each_ref().map(AsFd::as_fd))?;
        for from in 0..2 {
            while let Ok(got) = devices[from].receive(&mut buffer) {
                let Some(packet) = got else { continue };
                let to = &mut devices[1 - from];
                arena.clear();
                let cut = split(&packet.offload, packet.bytes, |one| {
                    let start = arena.len();
                    arena.extend_from_slice(one);
                    coalescer.push(to.joins(), &arena, start..arena.len());
                });
                // A full device drops, as any link does.
                coalescer.take(&mut arena, |offload, parts| drop(to.send(offload, parts)));
                cut.map_err(|e| format!("{e:?}"))?;
            }
        }
    }
}

fn tun_rs_packets() -> Result<()> {
    let open = |name: &str| -> Result<SyncDevice> {
        let device = DeviceBuilder::new().name(name).offload(true).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    };
    let devices = [open(SIDES[0].1)?, open(SIDES[1].1)?];
    println!("ready");
    let mut whole = vec![0; 70_000];
    let packet = || {
        let mut buffer = Vec::with_capacity(70_000);
        buffer.resize(VIRTIO_NET_HDR_LEN + MTU, 0);
        buffer
    };
    let mut buffers: Vec<Vec<u8>> = (0..IDEAL_BATCH_SIZE).map(|_| packet()).collect();
    let mut sizes = [0; IDEAL_BATCH_SIZE];
    let mut table = GROTable::default();
    loop {
        wait(devices.each_ref().map(AsFd::as_fd))?;
        for from in 0..2 {
            while let Ok(count) = devices[from].recv_multiple(
                &mut whole,
                &mut buffers,
                &mut sizes,
                VIRTIO_NET_HDR_LEN,
            ) {
                for (buffer, size) in buffers.iter_mut().zip(&sizes[..count]) {
                    buffer.truncate(VIRTIO_NET_HDR_LEN + size);
                }
                let taken = &mut buffers[..count];
                let _ = devices[1 - from].send_multiple(&mut table, taken, VIRTIO_NET_HDR_LEN);
                for buffer in taken {
                    buffer.resize(VIRTIO_NET_HDR_LEN + MTU, 0);
                }
            }
        }
    }
}

fn child_datagrams(who: &str, seconds: u32) -> Result<Cost> {
    let out = child(&["datagrams", who, &seconds.to_string()])?.wait_with_output()?;
    let said = String::from_utf8(out.stdout)?;
    let numbers: Vec<f64> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [cpu, rate] = numbers[..] else { return Err(format!("{who}: {said}").into()) };
    Ok(Cost { cpu, rate })
}

/// Sends two trains and takes them in, again and again: as much as any socket's buffer holds, so that nothing is lost.
fn datagrams(who: &str, seconds: u64) -> Result<()> {
    let mut turn = turn(who)?;
    let (begun, mut bytes) = (Instant::now(), 0);
    let before = cpu(std::process::id())?;
    while begun.elapsed() < Duration::from_secs(seconds) {
        bytes += turn()?;
    }
    let (used, took) = (cpu(std::process::id())? - before, begun.elapsed());
    #[expect(clippy::cast_precision_loss, reason = "far below what a double holds")]
    let gigabytes = bytes as f64 / 1e9;
    println!("{} {}", used / gigabytes, gigabytes * 8.0 / took.as_secs_f64());
    Ok(())
}

/// Returns what sends and receives once, and says how many bytes came.
fn turn(who: &str) -> Result<Box<dyn FnMut() -> Result<usize>>> {
    const WHOLE: usize = 2 * TRAIN * DATAGRAM;
    let payload = vec![7; TRAIN * DATAGRAM];
    let mut buffer = vec![0; BATCH_SIZE * 65_536];
    let to = |port: u16| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    if who == "own" {
        let [mut from, mut at] = [Udp::bind(PORTS[0])?, Udp::bind(PORTS[1])?];
        return Ok(Box::new(move || {
            let (path, kind) = (Path::from(to(PORTS[1])), Kind::default());
            for _ in 0..2 {
                from.send(&Train { path, bytes: &payload, size: DATAGRAM, kind }, Instant::now())?;
            }
            all(WHOLE, || Ok(at.receive(&mut buffer)?.bytes.len()))
        }));
    }
    let [from, at] = [UdpSocket::bind(to(PORTS[0]))?, UdpSocket::bind(to(PORTS[1]))?];
    at.set_nonblocking(true)?;
    if who != "quinn-udp" {
        return Ok(Box::new(move || {
            // A buffer holds fewer datagrams that come one by one.
            let mut came = 0;
            for datagram in payload.chunks(DATAGRAM).chain(payload.chunks(DATAGRAM)) {
                from.send_to(datagram, to(PORTS[1]))?;
                came += all(DATAGRAM, || Ok(at.recv_from(&mut buffer)?.0))?;
            }
            Ok(came)
        }));
    }
    let [sends, takes] = [UdpSocketState::new((&from).into())?, UdpSocketState::new((&at).into())?];
    Ok(Box::new(move || {
        for _ in 0..2 {
            let transmit = Transmit {
                destination: to(PORTS[1]),
                ecn: None,
                contents: &payload,
                segment_size: Some(DATAGRAM),
                src_ip: None,
            };
            sends.try_send((&from).into(), &transmit)?;
        }
        all(WHOLE, || {
            let mut meta = [RecvMeta::default(); BATCH_SIZE];
            let mut slices: Vec<_> = buffer.chunks_mut(65_536).map(IoSliceMut::new).collect();
            let count = takes.recv((&at).into(), &mut slices, &mut meta)?;
            Ok(meta[..count].iter().map(|m| m.len).sum())
        })
    }))
}

/// Receives until `wanted` bytes are there.
fn all(wanted: usize, mut receive: impl FnMut() -> std::io::Result<usize>) -> Result<usize> {
    let (mut came, until) = (0, Instant::now() + Duration::from_secs(2));
    while came < wanted {
        match receive() {
            Ok(bytes) => came += bytes,
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => {}
            Err(e) => return Err(format!("{came} of {wanted} bytes came: {e}").into()),
        }
    }
    Ok(came)
}
