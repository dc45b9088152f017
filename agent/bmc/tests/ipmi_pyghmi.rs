//! The client against pyghmi's BMC: as it is, which agrees to cipher suite 3 whatever it is asked,
//! and with its handshake replaced by one of suite 17. Integrity and encryption are pyghmi's own
//! in both.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use rackhand_bmc::{
    Bmc, BmcError, Credentials,
    ipmi::{Ipmi, packet},
    told::{BootOverride, BootSource},
};
use rackhand_common::machine::Power;

const SERVER: &str = r#"
import hashlib, hmac, os, struct, sys
import pyghmi.ipmi.bmc as bmc
import pyghmi.ipmi.private.serversession as serversession

class Machine(bmc.Bmc):
    powerstate = 'off'
    bootdevice = 'default'
    def get_boot_device(self): return self.bootdevice
    def set_boot_device(self, bootdevice): self.bootdevice = bootdevice
    def get_power_state(self): return self.powerstate
    def power_off(self): self.powerstate = 'off'
    def power_on(self): self.powerstate = 'on'
    def get_system_guid(self): return self.uuid

def sign(key, data):
    return hmac.new(key, bytes(data), hashlib.sha256).digest()

class Sha256Session(serversession.ServerSession):
    def create_open_session_response(self, request):
        if bytes(request[12:13]) != b'\x03':
            return bytearray([request[0], 0x11, 0, 0]) + request[4:8]
        response = super().create_open_session_response(request)
        response[16], response[24] = 3, 4
        self.currhashlib, self.currhashlen = hashlib.sha256, 16
        return response

    def _got_rakp1(self, data):
        self.Rm, self.rolem, self.username = bytes(data[8:24]), data[24], bytes(data[28:])
        self.maxpriv = self.rolem & 7
        self.kuid = self.authdata[self.username.decode()].encode()
        self.uuiddata, self.Rc = self.uuid.bytes, os.urandom(16)
        name = struct.pack('2B', self.rolem, len(self.username)) + self.username
        code = sign(self.kuid, self.clientsessionid + self.managedsessionid
                    + self.Rm + self.Rc + self.uuiddata + name)
        self.send_payload(bytearray([data[0], 0, 0, 0]) + self.clientsessionid + self.Rc
                          + self.uuiddata + code, 0x13, retry=False)

    def _got_rakp3(self, data):
        name = struct.pack('2B', self.rolem, len(self.username)) + self.username
        expected = sign(self.kuid, self.Rc + self.clientsessionid + name)
        if data[1] != 0 or bytes(data[8:]) != expected:
            return
        self.sik = sign(self.kuid, self.Rm + self.Rc + name)
        self.k1, self.k2 = sign(self.sik, b'\x01' * 20), sign(self.sik, b'\x02' * 20)
        self.aeskey = self.k2[:16]
        self.localsid = struct.unpack('<I', self.managedsessionid)[0]
        self.ipmicallback = self.handle_client_request
        code = sign(self.sik, self.Rm + self.managedsessionid + self.uuiddata)[:16]
        self.send_payload(bytearray([data[0], 0, 0, 0]) + self.clientsessionid + code, 0x15, retry=False)
        self.confalgo, self.integrityalgo, self.sequencenumber = 'aes', 'sha256', 1
        self.sessionid = struct.unpack('<I', bytes(self.clientsessionid))[0]

if sys.argv[2] == '17':
    serversession.ServerSession = Sha256Session
Machine({'admin': 'password'}, port=int(sys.argv[1]), address='127.0.0.1').listen(timeout=1)
"#;

/// A BMC of pyghmi's, killed when it is dropped.
struct Peer {
    _dir: TempDir,
    child: Child,
    address: SocketAddr,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    fn start(suite: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let (server, log) = (dir.path().join("server.py"), dir.path().join("log"));
        fs::write(&server, SERVER).unwrap();
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python/bin/python");
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let output = fs::File::create(&log).unwrap();
        let child = Command::new(python)
            .arg(server)
            .args([&address.port().to_string(), suite])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .expect(
                "make target/python: python3 -m venv target/python, and in it pip install -r tests/requirements.txt",
            );
        let peer = Self { _dir: dir, child, address };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let question = packet::plain(&packet::Request::new(0x06, 0x38, &[0x8e, 0x04]).message(0));
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let _ = socket.send(&question);
            if socket.recv(&mut [0; 64]).is_ok() {
                return peer;
            }
            assert!(Instant::now() < deadline, "pyghmi does not answer: {}", fs::read_to_string(&log).unwrap());
        }
    }

    fn bmc(&self, password: &str) -> Ipmi {
        Ipmi::new(self.address, Credentials { user: "admin".to_owned(), password: password.to_owned().into() })
    }
}

async fn power_and_boot_device_are_set_and_read(peer: &Peer) -> Ipmi {
    let bmc = peer.bmc("password");
    for wanted in [Power::On, Power::On, Power::Off] {
        bmc.set_power(wanted).await.unwrap();
        assert_eq!(bmc.power().await.unwrap(), wanted);
    }
    for source in [Some(BootSource::Network), Some(BootSource::Disk), None] {
        bmc.set_boot(BootOverride { source: source.clone(), is_lasting: false, uefi: None }).await.unwrap();
        assert_eq!(bmc.boot().await.unwrap().set.source, source);
    }
    assert_eq!(bmc.identity().await.unwrap().firmware.as_deref(), Some("1.00"));
    assert!(matches!(bmc.sensors().await, Err(BmcError::Unsupported(_))));
    bmc
}

#[tokio::test]
async fn a_bmc_that_agrees_to_another_suite_is_asked_for_that_one() {
    let peer = Peer::start("3");
    let bmc = power_and_boot_device_are_set_and_read(&peer).await;
    assert_eq!(bmc.suite().await.map(|suite| format!("{suite:?}")).as_deref(), Some("Sha1"));
}

#[tokio::test]
async fn suite_17_is_spoken_when_the_bmc_does() {
    let peer = Peer::start("17");
    let bmc = power_and_boot_device_are_set_and_read(&peer).await;
    assert_eq!(bmc.suite().await.map(|suite| format!("{suite:?}")).as_deref(), Some("Sha256"));
    assert!(matches!(peer.bmc("wrong").power().await, Err(BmcError::Denied(_))));
}

#[tokio::test]
async fn an_override_in_uefi_mode_that_is_forgotten_is_refused() {
    let peer = Peer::start("3");
    let wanted = BootOverride { source: Some(BootSource::Network), is_lasting: false, uefi: Some(true) };
    assert!(matches!(peer.bmc("password").set_boot(wanted).await, Err(BmcError::Refused(_))));
}
