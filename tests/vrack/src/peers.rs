//! Stories of DHCP and TFTP clients nobody here wrote: each has a card of its own on the
//! provisioning network and asks the rack's node what a machine would.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rackhand_common::machine::Mac;

use crate::{
    network::Place,
    rack::Rack,
    run::{outcome, run},
    services::Service,
    story::address,
};

/// How long a client may take; each gives up by itself long before.
const PATIENCE: Duration = Duration::from_secs(30);

/// A card that no machine has.
const STRANGER: Mac = Mac([0x52, 0x54, 0x00, 0x77, 0x01, 0x01]);
const ANOTHER: Mac = Mac([0x52, 0x54, 0x00, 0x77, 0x01, 0x02]);

const NODE: &str = "10.77.0.1";
const LOADER: &str = "undionly.kpxe";
const LOADER_FILE: &str = "/usr/lib/ipxe/undionly.kpxe";

/// What both DHCP clients call when they have learnt something; each its own way.
const SCRIPT: &str = r#"#!/bin/sh
reason=${reason:-$1} address=${new_ip_address:-$ip}
case "$reason" in
    BOUND|RENEW|REBIND|REBOOT|bound|renew)
        ip addr flush dev "$interface"
        ip addr add "$address/24" dev "$interface"
        echo "$address" > "$(dirname "$0")/address" ;;
    *)
        ip addr flush dev "$interface"
        ip link set "$interface" up ;;
esac
"#;

/// A network card and the programs that use it.
struct Client<'a> {
    rack: &'a Rack,
    directory: PathBuf,
}

impl<'a> Client<'a> {
    /// Plugs a card in; nothing on it remembers an earlier lease.
    fn plug(rack: &'a Rack, mac: Mac) -> anyhow::Result<Self> {
        rack.cabling.plug(Place::Client, mac)?;
        let directory = rack.files.directory.join("client");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("script"), SCRIPT)?;
        fs::set_permissions(directory.join("script"), fs::Permissions::from_mode(0o755))?;
        Ok(Self { rack, directory })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Runs a program on the card: whether it succeeded, and all it said.
    fn run(&self, words: &[&str]) -> anyhow::Result<(bool, String)> {
        let limit = PATIENCE.as_secs().to_string();
        let mut command = self.rack.cabling.command(Place::Client, "timeout");
        let (ok, said, complaint) = outcome(command.arg(limit).args(words).current_dir(&self.directory))?;
        Ok((ok, said + &complaint))
    }

    /// Runs a DHCP client; the address it ends with, and what it said.
    fn dhcp(&self, words: &[&str]) -> anyhow::Result<(String, String)> {
        let _ = fs::remove_file(self.path("address"));
        let (ok, said) = self.run(words)?;
        ensure!(ok, "{words:?} got no lease:\n{said}");
        Ok((self.address()?, said))
    }

    fn address(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.path("address")).context("the client learnt no address")?.trim().to_owned())
    }

    /// ISC's client with this identifier and what it remembers under it; it ends when it has
    /// its lease, and does not release it.
    fn dhclient(&self, identifier: &str) -> anyhow::Result<(String, String)> {
        let configuration = self.path(&format!("{identifier}.conf"));
        fs::write(&configuration, format!("send dhcp-client-identifier \"{identifier}\";\n"))?;
        let leases = self.path(&format!("{identifier}.leases"));
        fs::File::options().create(true).append(true).open(&leases)?;
        let mut words = vec!["dhclient", "-4", "-v", "-1", "-cf", &configuration, "-lf", &leases];
        let (pid, script) = (self.path("dhclient.pid"), self.path("script"));
        words.extend(["-pf", &pid, "-sf", &script, "eth0"]);
        let _ = fs::remove_file(&pid);
        let got = self.dhcp(&words)?;
        // It stays behind to renew, and writes its number down a little later; ended like this it
        // tells nobody.
        let number = self.wait(&pid, "number of dhclient", |number| number.ends_with('\n'))?;
        run("kill", &["-9", number.trim()])?;
        Ok(got)
    }

    fn dhclient_releases(&self, identifier: &str) -> anyhow::Result<()> {
        let (leases, pid, script) =
            (self.path(&format!("{identifier}.leases")), self.path("dhclient.pid"), self.path("script"));
        let words = ["dhclient", "-4", "-v", "-r", "-lf", &leases, "-pf", &pid, "-sf", &script, "eth0"];
        let (ok, said) = self.run(&words)?;
        ensure!(ok && said.contains("DHCPRELEASE of"), "dhclient released nothing:\n{said}");
        Ok(())
    }

    /// busybox's client; it ends when it has its lease.
    fn udhcpc(&self, more: &[&str]) -> anyhow::Result<(String, String)> {
        let script = self.path("script");
        self.dhcp(&[&["busybox", "udhcpc", "-f", "-n", "-q", "-i", "eth0", "-s", &script], more].concat())
    }

    /// busybox's client, which is told to renew its lease, and then to release it.
    fn udhcpc_renews_and_releases(&self) -> anyhow::Result<(String, String)> {
        let log = self.path("udhcpc.log");
        let mut child = self
            .rack
            .cabling
            .command(Place::Client, "busybox")
            .args(["udhcpc", "-f", "-i", "eth0", "-s", &self.path("script")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let said = (|| {
            let pid = child.id().to_string();
            let obtained = |log: &str| log.matches(" obtained from ").count();
            self.wait(&log, "a lease", |log| obtained(log) == 1)?;
            run("kill", &["-USR1", &pid])?;
            self.wait(&log, "a renewed lease", |log| log.contains("renew") && obtained(log) == 2)?;
            let address = self.address()?;
            run("kill", &["-USR2", &pid])?;
            Ok((address, self.wait(&log, "a release", |log| log.contains("entering released state"))?))
        })();
        child.kill()?;
        child.wait()?;
        said
    }

    /// Waits until a file that a client writes is as wanted.
    fn wait(&self, log: &str, what: &str, is: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(log).unwrap_or_default();
            if is(&said) {
                return Ok(said);
            }
            ensure!(Instant::now() < end, "no {what} in {PATIENCE:?}:\n{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.rack.cabling.unplug(Place::Client);
    }
}

/// dhclient and udhcpc with four client identifiers, from nothing, from a remembered lease
/// (INIT-REBOOT) and renewing, and boot killed in between.
pub(crate) fn one_card_keeps_one_address(rack: &mut Rack) -> anyhow::Result<()> {
    let client = Client::plug(rack, STRANGER)?;
    let (first, said) = client.dhclient("first")?;
    ensure!(said.contains("DHCPDISCOVER"), "dhclient did not begin at the beginning:\n{said}");
    let same = |(address, said): (String, String), who: &str| {
        ensure!(address == first, "{who} was given {address}, the card had {first}:\n{said}");
        Ok(said)
    };
    let rebooted = |said: String| {
        ensure!(!said.contains("DHCPDISCOVER"), "its remembered lease was not confirmed:\n{said}");
        Ok(())
    };
    same(client.dhclient("second")?, "dhclient with another identifier")?;
    same(client.udhcpc(&[])?, "udhcpc")?;
    same(client.udhcpc(&["-C"])?, "udhcpc without an identifier")?;
    rebooted(same(client.dhclient("first")?, "dhclient in INIT-REBOOT")?)?;

    rack.kill(Service::Boot)?;
    rack.start(Service::Boot)?;
    rebooted(same(client.dhclient("second")?, "dhclient in INIT-REBOOT after boot was killed")?)?;
    same(client.udhcpc_renews_and_releases()?, "udhcpc renewing")?;
    same(client.udhcpc(&[])?, "udhcpc after it released")?;
    drop(client);

    let client = Client::plug(rack, ANOTHER)?;
    let (other, _) = client.dhclient("first")?;
    ensure!(other != first, "two cards with one identifier were both given {first}");
    Ok(())
}

/// A card that a machine has, in other hands while the machine is off.
pub(crate) fn a_release_frees_nothing_planned(rack: &mut Rack) -> anyhow::Result<()> {
    let mac = rack.machines[1].label.mac;
    let known = rack.operator.machine(mac)?.context("the machine is gone")?;
    let planned = address(&known)?;
    let client = Client::plug(rack, mac)?;
    let (got, _) = client.dhclient("first")?;
    ensure!(got == planned, "the card was given {got} instead of {planned}");
    client.dhclient_releases("first")?;
    let (got, _) = client.udhcpc_renews_and_releases()?;
    ensure!(got == planned, "the card was given {got} after its release, instead of {planned}");
    drop(client);

    let client = Client::plug(rack, ANOTHER)?;
    let (stranger, _) = client.udhcpc(&["-r", planned])?;
    ensure!(stranger != planned, "a stranger was given {planned}, which it asked for");
    drop(client);

    let client = Client::plug(rack, mac)?;
    let (got, _) = client.dhclient("second")?;
    ensure!(got == planned, "the card was given {got} in the end, instead of {planned}");
    Ok(())
}

/// With and without `blksize` and `tsize`: the file arrives byte for byte.
pub(crate) fn tftp_clients_get_the_loader_whole(rack: &mut Rack) -> anyhow::Result<()> {
    let client = Client::plug(rack, STRANGER)?;
    client.udhcpc(&[])?;
    let wanted = fs::read(LOADER_FILE).context("is Debian's package ipxe installed?")?;
    let url = format!("tftp://{NODE}/{LOADER}");
    let clients: &[(&[&str], &str)] = &[
        // curl asks for both options by itself.
        (&["curl", "-sSv", "--tftp-blksize", "1428", "-o", "got", &url], "blksize parsed from OACK (1428)"),
        (&["curl", "-sSv", "--tftp-no-options", "-o", "got", &url], ""),
        (
            &[
                "atftp",
                "--trace",
                "--option",
                "blksize 1432",
                "--option",
                "tsize 0",
                "-g",
                "-r",
                LOADER,
                "-l",
                "got",
                NODE,
            ],
            "received OACK <",
        ),
        (&["busybox", "tftp", "-g", "-b", "1400", "-r", LOADER, "-l", "got", NODE], ""),
        (&["busybox", "tftp", "-g", "-r", LOADER, "-l", "got", NODE], ""),
        (&["tftp", "-v", "-m", "binary", NODE, "-c", "get", LOADER, "got"], ""),
    ];
    for (words, proof) in clients {
        let _ = fs::remove_file(client.path("got"));
        let (ok, said) = client.run(words)?;
        ensure!(ok, "{words:?} failed:\n{said}");
        ensure!(said.contains(proof), "{words:?} did not say {proof:?}:\n{said}");
        let got = fs::read(client.path("got")).with_context(|| format!("{words:?} wrote nothing:\n{said}"))?;
        ensure!(got == wanted, "{words:?} got {} bytes that are not the {} of the file", got.len(), wanted.len());
    }
    Ok(())
}

/// Other directories, absolute paths and writing, each by every client, each with the error
/// code that RFC 1350 has for it: 1 is no such file, 2 is not allowed.
pub(crate) fn tftp_refuses_other_paths_and_all_writing(rack: &mut Rack) -> anyhow::Result<()> {
    let client = Client::plug(rack, STRANGER)?;
    client.udhcpc(&[])?;
    fs::write(client.path("evil"), "not iPXE")?;
    // Each says the code its own way.
    let read = |path: &str| {
        let url = format!("tftp://{NODE}/{path}");
        [
            (vec!["curl".into(), "-sSv".into(), "--path-as-is".into(), "-o".into(), "got".into(), url], "(68)"),
            (words(&["busybox", "tftp", "-g", "-r", path, "-l", "got", NODE]), "(1) no such file"),
            (words(&["atftp", "-g", "-r", path, "-l", "got", NODE]), "no such file"),
            (words(&["tftp", "-m", "binary", NODE, "-c", "get", path, "got"]), "code 1: "),
        ]
    };
    let url = format!("tftp://{NODE}/{LOADER}");
    let write = [
        (words(&["curl", "-sSv", "-T", "evil", &url]), "(69)"),
        (words(&["busybox", "tftp", "-p", "-r", LOADER, "-l", "evil", NODE]), "(2) writing"),
        (words(&["atftp", "-p", "-r", LOADER, "-l", "evil", NODE]), "writing"),
        (words(&["tftp", "-m", "binary", NODE, "-c", "put", "evil", LOADER]), "code 2: "),
    ];
    // curl takes the first `/` of a URL's path away: with one more the node sees it absolute.
    let paths = ["../../etc/passwd", "/etc/passwd", "../undionly.kpxe", "ipxe/../../../etc/passwd"];
    for (words, proof) in paths.into_iter().flat_map(read).chain(write) {
        let _ = fs::remove_file(client.path("got"));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (_, said) = client.run(&words)?;
        ensure!(said.contains(proof), "{words:?} was not refused with {proof:?}:\n{said}");
        let got = fs::read(client.path("got")).unwrap_or_default();
        ensure!(got.is_empty(), "{words:?} got {} bytes", got.len());
    }
    let loader = fs::read(LOADER_FILE)?;
    ensure!(!loader.starts_with(b"not iPXE"), "the loader was overwritten");
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
