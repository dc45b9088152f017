//! Attacks on tickets and on the sessions they give.

use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context, ensure};
use rackhand_common::id::RunId;
use uuid::Uuid;

use super::{
    client::{self, Installer, ask_from, boots, connect, obtain, parameter, read},
    intruder::BORROWED,
    range::{HTTP, LEAD, Machine, PATIENCE, Range},
    wire::Card,
};
use crate::run::run;

pub(super) fn scraping(_: &mut Range) -> anyhow::Result<String> {
    boots()?;
    let mac = Machine::Neighbour.mac();
    let hyphens = mac.to_string().replace(':', "-");
    Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let own = obtain(&card, card.mac, Instant::now() + PATIENCE)?.context("the intruder is given no address")?;
        run("ip", &["-n", Machine::Intruder.namespace(), "addr", "replace", &format!("{own}/24"), "dev", "net0"])?;
        let query = [format!("?mac={mac}"), format!("?mac={hyphens}"), format!("?mac={}%00", mac)];
        let more =
            ["?mac=", "?mac=%ff", "?mac[]=x", "", "?machine=m-1", "?ticket=1", "?mac=52%3A54%3A00%3A00%3A00%3A01"];
        for path in query.iter().map(String::as_str).chain(more) {
            for from in [Machine::Intruder.address(), Ipv4Addr::new(10, 77, 0, BORROWED), own] {
                let asked = ask_from(from, "GET", &format!("/boot.ipxe{path}"))?;
                let text = &asked.1;
                let others = text.contains("rackhand.ticket=") && from != own;
                ensure!(!others && !text.contains(&format!("rackhand.mac={mac}")), "{path} from {from}: {text}");
            }
        }
        // What a proxy would say of who asks is not believed.
        for header in ["x-forwarded-for", "x-real-ip", "forwarded"] {
            let mut stream = connect(Machine::Intruder.address(), HTTP)?;
            let value = if header == "forwarded" { "for=10.77.0.11" } else { "10.77.0.11" };
            write!(
                stream,
                "GET /boot.ipxe?mac={mac} HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n{header}: {value}\r\n\r\n"
            )?;
            let said = String::from_utf8_lossy(&read(&mut stream)?).into_owned();
            ensure!(!said.contains("rackhand.ticket="), "{header} is believed: {said}");
        }
        Ok(String::new())
    })
}

/// The neighbour's installer, admitted, and the script it was started by.
fn rightful() -> anyhow::Result<(String, Installer)> {
    Machine::Neighbour.acts(|| {
        let script = client::script()?;
        let rightful = Installer::fresh(&script)?;
        ensure!(rightful.present(&script)?.0 == 200, "the rightful installer is refused");
        Ok((script, rightful))
    })
}

pub(super) fn replay(range: &mut Range) -> anyhow::Result<String> {
    let (script, rightful) = rightful()?;
    Machine::Intruder.acts(|| {
        let thief = Installer::fresh(&script)?;
        ensure!(thief.present(&script)?.0 == 403, "a used ticket was taken again");
        let ticket = parameter(&script, "ticket")?;
        ensure!(thief.present_as(ticket, Machine::Intruder.mac())?.0 == 403, "a ticket was taken for another card");
        ensure!(!thief.admitted()?, "a thief has a session");
        Ok(())
    })?;
    Machine::Neighbour.acts(|| {
        ensure!(rightful.present(&script)?.0 == 200, "a retry of the rightful installer is refused");
        ensure!(rightful.admitted()?, "the rightful installer lost its session");
        Ok(())
    })?;
    // One that was quicker loses what it has at the machine's next boot.
    let stolen = Machine::Neighbour.acts(client::script)?;
    let thief = Machine::Intruder.acts(|| {
        let thief = Installer::fresh(&stolen)?;
        ensure!(thief.present(&stolen)?.0 == 200, "the race cannot be lost here: say so in docs/promises.md");
        Ok(thief)
    })?;
    Machine::Neighbour.acts(|| {
        ensure!(Installer::fresh(&stolen)?.present(&stolen)?.0 == 403, "two installers have one ticket");
        let next = client::script()?;
        ensure!(Installer::fresh(&next)?.present(&next)?.0 == 200, "the next boot is refused too");
        Ok(())
    })?;
    ensure!(!Machine::Intruder.acts(|| thief.admitted())?, "the thief keeps its session beside the rightful one");
    ensure!(range.log()?.contains("ticket refused"), "nobody is told that a ticket was refused");
    Ok(String::new())
}

pub(super) fn guessing(_: &mut Range) -> anyhow::Result<String> {
    let (script, rightful) = rightful()?;
    Machine::Intruder.acts(|| {
        let guesser = Installer::fresh(&script)?;
        let mac = Machine::Neighbour.mac();
        let random: Vec<String> = (0..40).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let odd = [String::new(), "0".repeat(32), "%".into(), "\u{0}".repeat(32), "f".repeat(100_000)];
        for ticket in random.iter().chain(&odd) {
            let (status, said) = guesser.present_as(ticket, mac)?;
            ensure!(status == 403, "{status} {said}");
        }
        ensure!(!guesser.admitted()?, "a guesser has a session");
        Ok(())
    })?;
    ensure!(Machine::Neighbour.acts(|| rightful.admitted())?, "the rightful installer lost its session");
    Ok(String::new())
}

/// One address asks for its own scripts without pause, each with a ticket that goes to disk.
pub(super) fn flood(range: &mut Range) -> anyhow::Result<String> {
    let own = Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let own = obtain(&card, card.mac, Instant::now() + PATIENCE)?.context("the intruder is given no address")?;
        run("ip", &["-n", Machine::Intruder.namespace(), "addr", "replace", &format!("{own}/24"), "dev", "net0"])?;
        Ok(own)
    })?;
    range.boots_during(LEAD, |over| {
        let asked = AtomicU64::new(0);
        let asks = || {
            // Many requests on each connection, the next before the last is answered.
            let request = "GET /boot.ipxe HTTP/1.1\r\nhost: boot\r\n\r\n".repeat(16);
            while !over.load(Ordering::Relaxed) {
                let Ok(mut stream) = connect(own, HTTP) else { continue };
                let mut buffer = [0; 65536];
                while !over.load(Ordering::Relaxed)
                    && stream.write_all(request.as_bytes()).is_ok()
                    && stream.read(&mut buffer).is_ok_and(|len| len > 0)
                {
                    asked.fetch_add(16, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| (0..32).for_each(|_| drop(scope.spawn(asks))));
        Ok(format!("{} scripts asked for", asked.into_inner()))
    })
}

pub(super) fn no_session(_: &mut Range) -> anyhow::Result<String> {
    let script = Machine::Neighbour.acts(client::script)?;
    Machine::Intruder.acts(|| {
        let nobody = Installer::fresh(&script)?;
        let digest = "0".repeat(64);
        let run = RunId::fresh();
        let report = format!(r#"{{"run":"{run}","attempt":1,"news":{{"done":{{"disks":[]}}}}}}"#);
        let inventory = r#"{"firmware":"bios","system":{},"cpu":{},"memory":1,"nics":[],"disks":[]}"#;
        for (method, path, body) in [
            ("GET", "/v1/assignment", ""),
            ("GET", "/v1/assignment?after=0", ""),
            ("GET", &format!("/v1/manifests/{digest}"), ""),
            ("POST", "/v1/report", &report),
            ("PUT", "/v1/inventory", inventory),
        ] {
            let (status, said) = nobody.ask(method, path, body)?;
            ensure!((400..500).contains(&status), "{method} {path}: {status} {said}");
        }
        ensure!(nobody.ask("GET", "/v1/assignment", "")?.0 == 401, "an assignment without a session");
        Ok(String::new())
    })
}
