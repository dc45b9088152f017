//! `rackhand-controller doctor`: looks at an installation, whether it runs or not, and changes
//! nothing in it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use rackhand_common::finding::Findings;

use crate::{authority, controller::Config, images, seal_key, ssh, store};

/// The first sign that nothing can be examined: the configuration itself.
pub fn unusable(error: &anyhow::Error) -> Findings {
    let mut findings = Findings::default();
    findings.error("configuration", format_args!("{error:#}"), "mend it; `rackhand-controller help serve` shows how");
    findings
}

/// Looks at everything that belongs to a controller of this configuration.
pub async fn examine(config: &Config, now: Timestamp) -> Findings {
    let mut findings = Findings::default();
    let data = config.data.display().to_string();
    let Ok(owner) = fs::metadata(&config.data).map(|found| found.uid()) else {
        findings.error(
            "files",
            format_args!("{data} cannot be looked at"),
            "run `rackhand-controller init`, or this as root",
        );
        return findings;
    };
    let runs = serving(&config.data);
    files(&mut findings, config, owner);
    certificates(&mut findings, config, now);
    database(&mut findings, config, now).await;
    match statvfs(&config.data) {
        Ok(space) => findings.space(
            &data,
            space.blocks_available() * space.fragment_size(),
            space.blocks() * space.fragment_size(),
        ),
        Err(error) => findings.error("space", format_args!("{data}: {error}"), "look at the disk"),
    }
    match &runs {
        Some(pid) => {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
            findings.open_files("the controller", &limits);
        }
        None => findings.warning(
            "service",
            "the controller does not run",
            "systemctl enable --now rackhand-controller; then: journalctl -u rackhand-controller",
        ),
    }
    ports(&mut findings, config, runs.is_some());
    if let Some(ssh) = config.ssh {
        door(&mut findings, config, ssh);
    }
    let found = ["/usr/local/bin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join("qemu-img").exists());
    if found {
        findings.good("qemu-img", "is there");
    } else {
        findings.warning(
            "qemu-img",
            "is not there: qcow2 and vmdk images cannot be imported",
            "apt install qemu-utils",
        );
    }
    match images::probe() {
        given if given.is_whole() => findings.good("sandbox", format_args!("what reads a foreign image {given}")),
        given => findings.warning(
            "sandbox",
            format_args!("what reads a foreign image {given}"),
            "import images whose origin you trust, or run a newer kernel with Landlock (6.12 or later) and seccomp",
        ),
    }
    findings
}

fn files(findings: &mut Findings, config: &Config, owner: u32) {
    let before = findings.0.len();
    let mut paths = vec![config.data.clone(), config.pki()];
    match &config.server {
        None => paths.push(config.database()),
        Some(server) => paths.extend(server.password_file.clone()),
    }
    match fs::read_dir(config.pki()) {
        Ok(entries) => paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path()))),
        Err(error) => findings.error(
            "files",
            format_args!("{} cannot be read: {error}", config.pki().display()),
            "run this as root; if it is not there, restore a backup",
        ),
    }
    for path in paths {
        match fs::metadata(&path) {
            Ok(found) => findings.private(&path.display().to_string(), found.mode(), found.uid(), owner),
            Err(error) => findings.error(
                "files",
                format_args!("{}: {error}", path.display()),
                "if it is not there, restore a backup: `rackhand-controller restore --help`",
            ),
        }
    }
    match seal_key::unfinished(&config.pki()) {
        Ok(None) => {}
        Ok(Some(_)) => findings.warning(
            "files",
            "the key of the secrets in the database was being replaced, and that was interrupted",
            "start the controller, which finishes it, or run `rackhand-controller seal rotate` again",
        ),
        Err(error) => findings.error(
            "files",
            format_args!("the key of the secrets in the database: {:#}", anyhow::Error::from(error)),
            "restore a backup: `rackhand-controller restore --help`",
        ),
    }
    if findings.0.len() == before {
        findings.good("files", format_args!("{} and the keys are its user's alone", config.data.display()));
    }
}

fn certificates(findings: &mut Findings, config: &Config, now: Timestamp) {
    for (file, whose, renewed, advice) in [
        ("controller.pem", "the controller's", authority::CONTROLLER_MARGIN, "systemctl reload rackhand-controller"),
        (
            "root-1.pem",
            "the authority's",
            Duration::from_secs(365 * 86_400),
            "plan a new authority: nodes are enrolled anew",
        ),
    ] {
        let end = fs::read_to_string(config.pki().join(file)).ok().and_then(|text| authority::end(&text));
        match end {
            Some(end) => findings.certificate(whose, now, end, renewed, advice),
            None => findings.error(
                "certificate",
                format_args!("{} is not a certificate", config.pki().join(file).display()),
                "restore a backup: `rackhand-controller restore --help`",
            ),
        }
    }
}

async fn database(findings: &mut Findings, config: &Config, now: Timestamp) {
    let advice = "restore a backup: `rackhand-controller restore --help`";
    let place = match config.place() {
        Ok(place) => place,
        Err(error) => {
            findings.error("database", format_args!("{error:#}"), "mend `[database]` in the configuration");
            return;
        }
    };
    let advice = match &place {
        store::Place::File(_) => advice,
        store::Place::Server(_) => "look at the server and at `[database]` in the configuration",
    };
    match store::examine(&place).await {
        Ok(examined) if examined.damage.is_empty() => {
            findings.good("database", format_args!("{place} is sound"));
            findings.clock(now, examined.newest.unwrap_or(now));
            let missing: Vec<_> = examined
                .images
                .iter()
                .filter(|(_, manifest)| !config.images.objects.join("manifests").join(manifest).exists())
                .map(|(name, _)| name.as_str())
                .collect();
            if missing.is_empty() {
                findings.good("images", format_args!("{} are ready", examined.images.len()));
            } else {
                findings.error(
                    "images",
                    format_args!("objects are missing of: {}", missing.join(", ")),
                    format_args!("copy {} from where it was, or import them again", config.images.objects.display()),
                );
            }
            if !examined.waiting.is_empty() {
                findings.warning(
                    "restore",
                    format_args!("racks wait for their agents since a restore: {}", examined.waiting.join(", ")),
                    "see that their agents run and connect",
                );
            }
        }
        Ok(examined) => {
            findings.error("database", format_args!("it is damaged: {}", examined.damage.join("; ")), advice);
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            findings.error("database", format_args!("it cannot be read: {error:#}"), advice);
        }
    }
}

fn ports(findings: &mut Findings, config: &Config, runs: bool) {
    let here = |at: SocketAddr| match at.ip() {
        ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), at.port()),
        _ => at,
    };
    let (api, agents) = (config.api, config.agents);
    if runs {
        match TcpStream::connect_timeout(&here(api), Duration::from_secs(3)) {
            Ok(_) => findings.good("ports", format_args!("the API answers on {api}")),
            Err(error) => findings.error(
                "ports",
                format_args!("the controller runs, and its API does not answer on {api}: {error}"),
                "systemctl restart rackhand-controller; journalctl -u rackhand-controller",
            ),
        }
        return;
    }
    let ssh = config.ssh.map(|ssh| (format!("TCP {ssh}"), "ssh.listen", TcpListener::bind(ssh).map(drop)));
    let others = [
        (format!("TCP {api}"), "api.listen", TcpListener::bind(api).map(drop)),
        (format!("UDP {agents}"), "agents.listen", UdpSocket::bind(agents).map(drop)),
    ];
    for (name, setting, tried) in others.into_iter().chain(ssh) {
        match tried {
            Ok(()) => findings.good("ports", format_args!("{name} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => findings.error(
                "ports",
                format_args!("{name} is another program's"),
                format_args!("end it (`ss -lnptu` names it), or choose another `{setting}`"),
            ),
            Err(error) => findings.error(
                "ports",
                format_args!("{name} cannot be used: {error}"),
                format_args!("look at `{setting}` in the configuration"),
            ),
        }
    }
}

/// By which key the controller is known to who comes by SSH.
fn door(findings: &mut Findings, config: &Config, at: SocketAddr) {
    match ssh::host_key(&config.pki()) {
        Ok(Some(key)) => {
            findings.good("ssh", format_args!("the controller's key is {}", key.door(at.port()).fingerprint));
        }
        Ok(None) => findings.good("ssh", "the controller's key is made at its next start"),
        Err(error) => findings.error("ssh", format_args!("{error:#}"), "then start the controller again"),
    }
}

/// The controller that serves this data directory: whoever has its lock open. One of another
/// directory on the same machine is none of ours.
fn serving(data: &Path) -> Option<u32> {
    let lock = data.join("lock").canonicalize().ok()?;
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let is_ours = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end() == COMM;
        let mut open = fs::read_dir(entry.path().join("fd")).ok()?.filter_map(Result::ok);
        (is_ours && open.any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file == lock))).then_some(pid)
    })
}

/// The program's name as the kernel keeps it: its first fifteen bytes.
const COMM: &str = "rackhand-contro";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rackhand_common::{finding::Severity, pki::install_crypto};

    use super::*;
    use crate::controller::{self, ApiFile, File, Seams};

    async fn made(dir: &Path) -> Config {
        install_crypto();
        let listen = Some("127.0.0.1:0".parse().unwrap());
        let file = File {
            data: Some(dir.to_owned()),
            names: vec!["127.0.0.1".into()],
            api: ApiFile { listen, ..ApiFile::default() },
            agents: controller::AgentsFile { listen, address: None },
            ..File::default()
        };
        let config = Config::try_from(file).unwrap();
        controller::init(&config, Seams::default(), |_, _| Ok(())).await.unwrap();
        config
    }

    /// What is wrong, without what depends on the machine the test runs on.
    fn wrong(findings: &Findings) -> Vec<(Severity, &str, &str)> {
        let ours = |subject: &str| !["space", "qemu-img", "sandbox", "service", "limits"].contains(&subject);
        findings
            .0
            .iter()
            .filter(|finding| finding.severity != Severity::Good && ours(finding.subject))
            .map(|finding| (finding.severity, finding.subject, finding.found.as_str()))
            .collect()
    }

    #[tokio::test]
    async fn a_fresh_controller_is_sound() {
        let dir = tempfile::tempdir().unwrap();
        let config = made(&dir.path().join("data")).await;
        let before = fs::read_dir(&config.data).unwrap().count();
        let findings = examine(&config, Timestamp::now()).await;
        assert_eq!(wrong(&findings), []);
        for subject in ["files", "certificate", "database", "clock", "ports", "images", "space"] {
            assert!(findings.0.iter().any(|finding| finding.subject == subject), "{subject}\n{findings}");
        }
        assert_eq!(fs::read_dir(&config.data).unwrap().count(), before, "something was made");
    }

    #[tokio::test]
    async fn each_thing_that_is_broken_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = Config { data: dir.path().join("nothing"), ..made(&dir.path().join("data")).await };
        assert_eq!(examine(&nothing, Timestamp::now()).await.status(), 2);

        type Break = fn(&Config);
        let breaks: [(&str, Break); 5] = [
            ("files", |config| {
                fs::set_permissions(config.pki().join("root-1.key"), fs::Permissions::from_mode(0o644)).unwrap();
            }),
            ("files", |config| fs::set_permissions(&config.data, fs::Permissions::from_mode(0o755)).unwrap()),
            ("certificate", |config| fs::write(config.pki().join("controller.pem"), "none").unwrap()),
            ("files", |config| fs::remove_file(config.database()).unwrap()),
            ("database", |config| {
                let mut bytes = fs::read(config.database()).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle..middle + 4096].fill(0xff);
                fs::write(config.database(), bytes).unwrap();
            }),
        ];
        for (number, (subject, broken)) in breaks.into_iter().enumerate() {
            let config = made(&dir.path().join(number.to_string())).await;
            broken(&config);
            let findings = examine(&config, Timestamp::now()).await;
            assert!(wrong(&findings).iter().any(|(_, found, _)| *found == subject), "{number}:\n{findings}");
            assert_eq!(findings.status(), 2, "{number}:\n{findings}");
        }

        let config = made(&dir.path().join("late")).await;
        let later = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 900);
        assert_eq!(wrong(&examine(&config, later).await)[0].1, "certificate");

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = Config { api: taken.local_addr().unwrap(), ..config };
        assert_eq!(wrong(&examine(&config, Timestamp::now()).await)[0].1, "ports");
    }
}
