//! Content that is sent through a tunnel and compared, since iperf3 does not look at what arrives. Shell.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use clap::Args;
use sha2::{Digest as _, Sha256};

/// How long neither side waits for the other any more.
const PATIENCE: Duration = Duration::from_secs(30);

/// `skein-bench receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Where to listen for one connection.
    #[arg(long)]
    listen: SocketAddr,
}

/// `skein-bench send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Where somebody receives.
    #[arg(long)]
    to: SocketAddr,
    /// How much, in MiB.
    #[arg(long, default_value_t = 100)]
    mib: u64,
    /// What the content is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Receives until the sender is through, and prints the SHA-256 of what came.
///
/// # Errors
/// When the connection fails.
pub fn receive(args: &ReceiveArgs) -> Result<u8, String> {
    let listener = TcpListener::bind(args.listen).map_err(|e| format!("{}: {e}", args.listen))?;
    let (mut stream, from) = listener.accept().map_err(|e| format!("nobody called: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer).map_err(|e| format!("{from}: {e}"))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    crate::lab::print(hex::encode(hash.finalize()));
    Ok(0)
}

/// Sends, in writes of odd sizes, and prints the SHA-256 of what was sent.
///
/// # Errors
/// When the connection fails.
pub fn send(args: &SendArgs) -> Result<u8, String> {
    let to = args.to;
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(|e| format!("{to}: {e}"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let (mut hash, mut draw, mut left) = (Sha256::new(), Draw::new(args.seed), args.mib << 20);
    let mut buffer = vec![0; 1 << 16];
    while left > 0 {
        let size = (1 + draw.next() % buffer.len() as u64).min(left);
        let piece = &mut buffer[..usize::try_from(size).unwrap_or(1)];
        draw.fill(piece);
        hash.update(&*piece);
        stream.write_all(piece).map_err(|e| format!("{to}: {e}"))?;
        left -= size;
    }
    crate::lab::print(hex::encode(hash.finalize()));
    Ok(0)
}

/// Bytes that do not repeat: xorshift64 (Marsaglia, Xorshift RNGs, 2003).
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(seed | 1 << 63)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}
