//! Who votes when a voter is lost.

use crate::common::{Lab, texts, wait_for};

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_learner_takes_the_seat_of_a_lost_voter() {
    let Some(lab) = Lab::up("seat", 3, 1, &["--k3s", "rehearsal", "--no-cluster"]) else {
        return;
    };
    let voters = |host: &str| -> Result<Vec<String>, String> {
        let mut voters = texts(&lab.ask(host, &["status"])?["voters"]);
        voters.sort();
        Ok(voters)
    };
    assert_eq!(voters("n4").unwrap(), ["n1", "n2", "n3"]);
    let leader = lab.leader("n4");
    let lost = ["n2", "n3"].into_iter().find(|n| *n != leader).unwrap();
    let rest: Vec<&str> = ["n1", "n2", "n3", "n4"].into_iter().filter(|n| *n != lost).collect();
    lab.must(&["kill", lost]);
    // 30 s until a silent voter counts as gone, and a learner must have been heard for 60 s.
    wait_for("the learner votes instead", 100, || {
        let seen = voters("n4")?;
        if seen == rest { Ok(()) } else { Err(format!("{seen:?} vote")) }
    });

    // Only if the new seat counts do two of these three make a majority.
    lab.must(&["kill", &leader]);
    wait_for("a second loss is survived", 20, || {
        let out = lab.exec("n4", &["skein", "net", "create", "second-loss"]);
        let known = lab.exec("n4", &["skein", "net", "show", "second-loss"]).status.success();
        if known { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
    for host in [lost, &leader] {
        lab.must(&["start", host]);
    }
    wait_for("everybody is there, and the voters are odd in number", 30, || {
        let status = lab.ask("n4", &["status"])?;
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|n| n["state"] == "ready").count();
        let fine = ready == 4 && voters("n4")?.len() == 3;
        if fine { Ok(()) } else { Err(status.to_string()) }
    });
    lab.down();
}
