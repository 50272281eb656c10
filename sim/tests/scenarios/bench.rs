//! The bench sees what it is there to see.

use serde_json::Value;

use crate::common::Lab;

#[test]
#[ignore = "makes hosts: ./check rehearsal"]
fn a_planted_second_holder_fails_the_bench() {
    let Some(lab) = Lab::reserve("planted") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().to_str().expect("its name is text");
    let run = lab.verb(&[
        "bench",
        "failover",
        "--trials",
        "1",
        "--cases",
        "drain",
        "--yardstick",
        "0",
        "--k3s",
        "rehearsal",
        "--plant-second-holder",
        "--out",
        out,
    ]);
    let said = String::from_utf8_lossy(&run.stderr);
    let text = std::fs::read(folder.path().join("failover.json")).expect("the outcome is written");
    let outcome: Value = serde_json::from_slice(&text).expect("it is JSON");
    assert_eq!(outcome["broken_off"], Value::Null, "{said}");
    let trial = &outcome["systems"][0]["cases"][0]["trials"][0];
    println!("    {} {}", trial["answered_by"], trial["turn"]);
    assert!(trial["turn"].is_string(), "two hosts answered in turns: {trial}");
    let verdicts = outcome["verdicts"].as_array().expect("verdicts");
    let never = verdicts.iter().find(|v| v["case"] == "all").expect("a verdict on all trials");
    assert_eq!(never["held"], false, "{never}");
    assert_eq!(run.status.code(), Some(1), "{said}");
    for file in ["failover.md", "failover.svg"] {
        assert!(folder.path().join(file).exists(), "{file} is written, too");
    }
    lab.down();
}
