//! Connections to a server that vanished without a word: they end at once instead of hanging for minutes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::common::{Lab, now};

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn connections_to_a_vanished_holder_end() {
    let Some(lab) = Lab::rehearsal("flows", 3, 1) else { return };
    let holder = lab.holder("n4");
    // Its own address, not the VIP: what moves would be answered by the new holder.
    let address = lab.overlay(&holder, false);
    let script = format!(
        "exec 3<>/dev/tcp/{address}/6443 && echo open; read -r -t 40 -u 3; echo \"read $?\""
    );
    let mut child = lab
        .command(&["exec", "n4", "--", "bash", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the lab's program runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "open");

    let cut = now();
    lab.must(&["kill", &holder]);
    let read = lines.next().expect("a line").expect("text");
    let took = cut.elapsed();
    child.wait().expect("it ends");
    // bash's `read` returns more than 128 when its time is over, 1 when the connection ends.
    assert_eq!(read, "read 1", "the connection hung until the reader gave up");
    println!("    {:>6.2} s  until the connection ended", took.as_secs_f64());
    assert!(took.as_secs() < 5, "it took {took:?}");
    lab.down();
}
