//! Redfish against `sushy-emulator` of sushy-tools, over TLS.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use expect_test::expect;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::interval,
};
use zeroize::Zeroizing;

use rackhand_bmc::{
    Bmc, BmcError, Credentials,
    redfish::{Bounds, Fingerprint, Redfish, Target, Which, link::Link},
    told::{Boot, BootOverride, BootSource, baseline::Attribute},
};
use rackhand_common::machine::Power;

const FIRST: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef094";
const SECOND: &str = "27946b59-9e44-4fa7-8e91-f3527a1ef095";

/// `admin` with the password `correct horse`, as bcrypt.
const AUTH: &str = "admin:$2b$04$lrT6vKeQQSYKG9EZ5BE/leEC2xKbJFBiZyWhCPmJJ0IXOP021vNuW\n";

/// How long the emulator may take to start, or a machine of its to change its power: it takes up
/// to 11 s for that by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// An emulator with two machines, which ends with the test.
struct Emulator {
    child: Child,
    port: u16,
    certificate: Vec<u8>,
    directory: TempDir,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let program = root.join("target/python/bin/sushy-emulator");
    assert!(
        program.exists(),
        "{} is missing: install tests/requirements.txt into a virtual environment at target/python",
        program.display()
    );
    program
}

impl Emulator {
    async fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["bmc".to_owned()]).unwrap();
        let file = |name: &str, contents: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, contents).unwrap();
            path
        };
        let (key, certificate) = (file("key.pem", &signing_key.serialize_pem()), file("cert.pem", &cert.pem()));
        let auth = file("auth", AUTH);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let machine = |uuid: &str, name: &str, mac: &str| {
            format!(
                "{{'uuid': '{uuid}', 'name': '{name}', 'power_state': 'Off', 'nics': [{{'mac': '{mac}', 'ip': '192.0.2.9'}}]}}"
            )
        };
        let storage = format!(
            "{{'{FIRST}': [{{'Id': '1', 'Name': 'Local Storage Controller', 'StorageControllers': [{{'MemberId': '0', \
             'Name': 'Contoso Integrated RAID', 'SpeedGbps': 12}}], 'Drives': ['32ADF365C6C1B7BD']}}]}}"
        );
        let drives = format!(
            "{{('{FIRST}', '1'): [{{'Id': '32ADF365C6C1B7BD', 'Name': 'Drive Sample', 'CapacityBytes': 899527000000, 'Protocol': 'SAS'}}]}}"
        );
        let config = file(
            "emulator.conf",
            &format!(
                "SUSHY_EMULATOR_FAKE_DRIVER = True\nSUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n\
                 SUSHY_EMULATOR_STATE_DIR = {:?}\nSUSHY_EMULATOR_SSL_CERT = {certificate:?}\nSUSHY_EMULATOR_SSL_KEY = {key:?}\n\
                 SUSHY_EMULATOR_AUTH_FILE = {auth:?}\nSUSHY_EMULATOR_FAKE_SYSTEMS = [{}, {}]\n\
                 SUSHY_EMULATOR_STORAGE = {storage}\nSUSHY_EMULATOR_DRIVES = {drives}\n",
                directory.path(),
                machine(FIRST, "first", "00:5c:52:31:3a:9c"),
                machine(SECOND, "second", "00:5c:52:31:3a:9d"),
            ),
        );
        let output = std::fs::File::create(directory.path().join("output")).unwrap();
        let child = Command::new(program())
            .args(["--fake", "--config"])
            .arg(config)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let mut emulator = Self { child, port, certificate: cert.der().to_vec(), directory };
        let (began, mut looks) = (Instant::now(), interval(LOOK));
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let output = || std::fs::read_to_string(emulator.directory.path().join("output")).unwrap_or_default();
            assert!(emulator.child.try_wait().unwrap().is_none(), "the emulator ended: {}", output());
            assert!(began.elapsed() < PATIENCE, "the emulator does not listen: {}", output());
            looks.tick().await;
        }
        emulator
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    fn target(&self) -> Target {
        let password = Zeroizing::new("correct horse".to_owned());
        Target {
            url: format!("https://127.0.0.1:{}", self.port),
            credentials: Credentials { user: "admin".to_owned(), password },
            fingerprint: Some(self.fingerprint()),
            system: Which::Uuid(FIRST.parse().unwrap()),
            bounds: Bounds { settle: Duration::from_millis(20), ..Bounds::default() },
        }
    }

    fn redfish(&self) -> Redfish {
        Redfish::new(self.target()).unwrap()
    }
}

/// A web server with one image.
struct Images {
    url: String,
    task: JoinHandle<()>,
}

impl Drop for Images {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Images {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/boot.iso", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\niso").await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, task }
    }
}

async fn wait_for_power(redfish: &Redfish, wanted: Power) {
    let (began, mut looks) = (Instant::now(), interval(LOOK));
    loop {
        let seen = redfish.power().await;
        if seen == Ok(wanted) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "power is {seen:?} and not {wanted:?}");
        looks.tick().await;
    }
}

#[tokio::test]
async fn the_machine_that_is_meant_is_found_and_told() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    let identity = redfish.identity().await.unwrap();
    assert_eq!(identity.uuid, Some(FIRST.parse().unwrap()));
    let words = [&identity.vendor, &identity.model, &identity.firmware, &identity.manager];
    expect![[r#"[Some("Sushy Emulator"), None, Some("1.00"), Some("Joo Janta 200")]"#]]
        .assert_eq(&format!("{words:?}"));

    let only = Redfish::new(Target { system: Which::Only, ..emulator.target() }).unwrap();
    let error = only.power().await.unwrap_err();
    assert_eq!(error, BmcError::Refused("it has several systems that are meant, of 2".to_owned()));
}

#[tokio::test]
async fn power_is_set_and_gets_there() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    assert_eq!(redfish.power().await, Ok(Power::Off));
    redfish.set_power(Power::On).await.unwrap();
    wait_for_power(&redfish, Power::On).await;
    redfish.set_power(Power::Off).await.unwrap();
    wait_for_power(&redfish, Power::Off).await;
}

#[tokio::test]
async fn an_override_is_set_and_one_that_does_nothing_is_refused() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    let wanted = |source, uefi| BootOverride { source: Some(source), is_lasting: false, uefi };
    redfish.set_boot(wanted(BootSource::Network, Some(true))).await.unwrap();
    let Boot { set, doubt } = redfish.boot().await.unwrap();
    // The emulator shows every override as a lasting one.
    let shown = BootOverride { source: Some(BootSource::Network), is_lasting: true, uefi: Some(true) };
    assert_eq!((set, doubt), (shown, None));

    let error = redfish.set_boot(wanted(BootSource::Http(None), None)).await.unwrap_err();
    assert!(matches!(&error, BmcError::Refused(why) if why.contains("did nothing")), "{error}");
    redfish.set_boot(wanted(BootSource::Disk, None)).await.unwrap();
    redfish.set_boot(BootOverride { source: None, is_lasting: false, uefi: None }).await.unwrap();
    assert_eq!(redfish.boot().await.unwrap().set.source, None);
    let error = redfish.set_boot(wanted(BootSource::Setup, None)).await.unwrap_err();
    assert_eq!(error, BmcError::Unsupported("it cannot boot from BiosSetup".to_owned()));
}

#[tokio::test]
async fn sensors_and_parts_are_told() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    let sensors = redfish.sensors().await.unwrap();
    let readings = sensors.readings.iter().map(|r| format!("{} {:?} {:?} {:?}\n", r.name, r.kind, r.value, r.severity));
    let parts = redfish.parts().await.unwrap();
    let found =
        parts.parts.iter().map(|p| format!("{:?} {} {:?} {:?} {:?}\n", p.kind, p.slot, p.serial, p.size, p.macs));
    let skipped = sensors.skipped.iter().chain(&parts.skipped).map(|s| format!("skipped {}: {}\n", s.place, s.why));
    let told = readings.chain(found).chain(skipped).collect::<String>();
    expect![[r#"
        CPU Temp Temperature Some(41.0) Some(Ok)
        CPU Temp Temperature Some(41.0) Some(Ok)
        Chassis Intake Temp Temperature Some(25.0) Some(Ok)
        BaseBoard System Fan Fan Some(2100.0) Some(Ok)
        BaseBoard System Fan Backup Fan Some(2050.0) Some(Ok)
        Card Contoso Integrated RAID Some("2M220100SL") None []
        Drive Drive Sample Some("1234570") Some(899527000000) []
        Chassis Chassis Some("437XR1138R2") None []
        Fan BaseBoard System Fan None None []
        Fan BaseBoard System Fan Backup None None []
        Nic VNIC 00:5c:52:31:3a:9c None None [00:5c:52:31:3a:9c]
        skipped /redfish/v1/Systems/FIRST/Memory: not supported: /redfish/v1/Systems/FIRST/Memory: 404 404 Not Found: The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.
        skipped /redfish/v1/UpdateService/FirmwareInventory: not supported: /redfish/v1/UpdateService/FirmwareInventory: 404 404 Not Found: The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.
    "#]].assert_eq(&told.replace(FIRST, "FIRST"));
}

#[tokio::test]
async fn the_light_is_lit_and_what_is_missing_is_unsupported() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    redfish.identify(Duration::from_secs(60)).await.unwrap();
    redfish.identify(Duration::ZERO).await.unwrap();
    assert!(matches!(redfish.log().await, Err(BmcError::Unsupported(_))));
    assert!(matches!(redfish.accounts().await, Err(BmcError::Unsupported(_))));
    assert!(matches!(redfish.lan().await, Err(BmcError::Unsupported(_))));
    assert!(matches!(redfish.bios().await, Err(BmcError::Unsupported(_))));
    let wanted = BTreeMap::from([("BootMode".to_owned(), Attribute::Text("Uefi".to_owned()))]);
    assert!(matches!(redfish.set_bios(&wanted).await, Err(BmcError::Unsupported(_))));
    assert!(matches!(redfish.subscribe("https://192.0.2.1/", "x").await, Err(BmcError::Unsupported(_))));
}

#[tokio::test]
async fn media_are_inserted_and_ejected() {
    let emulator = Emulator::start().await;
    let images = Images::start().await;
    let redfish = emulator.redfish();
    let drives = redfish.virtual_media().await.unwrap();
    let cd = drives.iter().find(|drive| drive.is_cd()).unwrap_or_else(|| panic!("no drive for CDs: {drives:?}"));
    assert!(!cd.is_inserted);
    redfish.insert_media(&cd.link, &images.url).await.unwrap();
    let now = redfish.virtual_media().await.unwrap();
    let now = now.iter().find(|drive| drive.link == cd.link).unwrap();
    assert_eq!((now.is_inserted, now.image.as_deref()), (true, Some(images.url.as_str())));
    redfish.insert_media(&cd.link, &images.url).await.unwrap();
    redfish.eject_media(&cd.link).await.unwrap();
    redfish.eject_media(&cd.link).await.unwrap();
    assert!(redfish.virtual_media().await.unwrap().iter().all(|drive| !drive.is_inserted));
}

#[tokio::test]
async fn secure_boot_is_set() {
    let emulator = Emulator::start().await;
    let redfish = emulator.redfish();
    assert_eq!(redfish.secure_boot().await.unwrap().is_enabled, Some(false));
    redfish.set_secure_boot(true).await.unwrap();
    let now = redfish.secure_boot().await.unwrap();
    assert_eq!((now.is_enabled, now.is_active, now.mode.as_deref()), (Some(true), Some(true), Some("DeployedMode")));
}

#[tokio::test]
async fn certificates_are_read() {
    let emulator = Emulator::start().await;
    let (certificates, skipped) = emulator.redfish().certificates().await.unwrap();
    assert!(certificates.is_empty() && skipped.is_empty(), "{certificates:?} {skipped:?}");
}

#[tokio::test]
async fn a_wrong_password_is_denied() {
    let emulator = Emulator::start().await;
    let password = Zeroizing::new("wrong horse".to_owned());
    let credentials = Credentials { user: "admin".to_owned(), password };
    let redfish = Redfish::new(Target { credentials, ..emulator.target() }).unwrap();
    let error = redfish.power().await.unwrap_err();
    assert!(matches!(&error, BmcError::Denied(why) if !why.contains("wrong horse")), "{error}");
}

#[tokio::test]
async fn the_first_certificate_is_believed_and_another_is_not() {
    let emulator = Emulator::start().await;
    let unknown = Redfish::new(Target { fingerprint: None, ..emulator.target() }).unwrap();
    assert_eq!(unknown.fingerprint(), None);
    assert_eq!(unknown.greet().await, Ok(Some(emulator.fingerprint())));
    assert_eq!(unknown.power().await, Ok(Power::Off));

    let other = Emulator::start().await;
    let impostor = Redfish::new(Target { fingerprint: Some(emulator.fingerprint()), ..other.target() }).unwrap();
    let error = impostor.power().await.unwrap_err();
    let words = format!("its certificate is {}, and was {}", other.fingerprint(), emulator.fingerprint());
    assert_eq!(error, BmcError::Changed(words));
}

#[tokio::test]
async fn an_update_that_the_emulator_cannot_make_fails_in_its_words() {
    let emulator = Emulator::start().await;
    let machine = Link::parse(&format!("/redfish/v1/Systems/{FIRST}")).unwrap();
    let error = emulator.redfish().update_from("https://192.0.2.1/bios.bin", &[machine]).await.unwrap_err();
    expect!["unreachable: /redfish/v1/UpdateService/Actions/UpdateService.SimpleUpdate: 500 Failed fetching BIOS information"]
        .assert_eq(&error.to_string());
}
