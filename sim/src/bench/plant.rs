//! A second holder, planted by hand, to see the bench find it. Shell.

use std::net::IpAddr;
use std::time::Duration;

use super::lab::Lab;

/// How often the client is sent to the second holder and back.
const TURNS: u32 = 4;
const TURN: Duration = Duration::from_millis(250);

/// A host that bears an address without holding it, and a client that is led astray.
pub(super) struct Plant<'a> {
    lab: &'a Lab,
    second: &'a str,
    client: &'a str,
    address: String,
    gateway: String,
}

impl<'a> Plant<'a> {
    /// Puts the address on the second host.
    pub(super) fn new(
        lab: &'a Lab,
        second: &'a str,
        client: &'a str,
        address: IpAddr,
    ) -> Result<Self, String> {
        let gateway = lab.address(second, "eth0", address.is_ipv6())?;
        let length = if address.is_ipv6() { 128 } else { 32 };
        let plant = Self { lab, second, client, address: format!("{address}/{length}"), gateway };
        let mut add = vec!["ip", "addr", "add", &plant.address, "dev", "eth0"];
        if address.is_ipv6() {
            add.push("nodad");
        }
        lab.run(second, &add)?;
        Ok(plant)
    }

    /// Sends the client to both in turns.
    pub(super) fn answer_in_turns(&self) -> Result<(), String> {
        for _ in 0..TURNS {
            for verb in ["add", "del"] {
                let (to, via) = (&self.address, &self.gateway);
                let route = ["ip", "route", verb, to, "via", via, "dev", "eth0"];
                self.lab.run(self.client, &route)?;
                std::thread::sleep(TURN);
            }
        }
        Ok(())
    }
}

impl Drop for Plant<'_> {
    fn drop(&mut self) {
        let remove = ["ip", "addr", "del", &self.address, "dev", "eth0"];
        let _ = self.lab.run(self.second, &remove);
    }
}
