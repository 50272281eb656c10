//! kubectl hangs: `skein cluster check` says at which part of the way.

use crate::common::{Lab, refused, wait_for};
use crate::wrong_host::{next, sh};

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn each_part_of_the_way_to_the_api_is_told_apart() {
    let Some(lab) = Lab::rehearsal("hanging", 1, 2) else { return };
    let checked = || lab.exec("n3", &["skein", "cluster", "check", "lab"]);
    let well = lab.run("n3", &["skein", "cluster", "check", "lab"]);
    assert_eq!(well.lines().filter(|l| l.starts_with("ok")).count(), 5, "{well}");
    let holder = lab.exec("n1", &["skein", "cluster", "check", "lab"]);
    assert!(holder.status.success(), "on the holder: {holder:?}");
    let list = lab.ask("n3", &["cluster", "check", "lab"]).unwrap();
    assert_eq!(list["checks"].as_array().map(Vec::len), Some(5), "{list}");

    // Another route, as another VPN's would be, leads the VIP's packets out of the overlay.
    let vip = lab.vip_address("n3", true);
    sh(&lab, "n3", &format!("ip -6 route add {vip}/128 dev eth0 metric 1"));
    let why = refused(&checked(), 1);
    println!("    {why}");
    assert!(why.contains("route: ") || why.contains("connect: "), "{why}");
    sh(&lab, "n3", &format!("ip -6 route del {vip}/128 dev eth0 metric 1"));
    wait_for("the way is free again", 10, || {
        let out = checked();
        if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
    });

    lab.must(&["pause", "n1"]);
    wait_for("the holder is told as lost", 20, || {
        let out = checked();
        let words = String::from_utf8_lossy(&out.stderr).into_owned();
        let told =
            out.status.code() == Some(1) && words.contains("holder: n1 holds the VIP and is down");
        if told && next(&out).contains("start n1") { Ok(()) } else { Err(words) }
    });
    lab.must(&["resume", "n1"]);
    wait_for("all is well again", 30, || {
        let out = checked();
        if out.status.success() { Ok(()) } else { Err(format!("{out:?}")) }
    });
    lab.down();
}
