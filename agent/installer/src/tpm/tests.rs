use std::{
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;

/// One that answers this, whatever it is asked.
struct Says(Vec<u8>, bool);

impl Tpm for Says {
    fn transmit(&mut self, _: &[u8]) -> io::Result<Vec<u8>> {
        Ok(self.0.clone())
    }

    fn ask_firmware(&mut self) -> io::Result<()> {
        if self.1 { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

proptest! {
    #[test]
    fn no_answer_makes_the_reader_panic_or_counts_as_cleared(
        bytes in prop::collection::vec(any::<u8>(), 0..64), has_header in any::<bool>(), asks in any::<bool>(),
    ) {
        let mut answer = bytes;
        if has_header && answer.len() >= 10 {
            let len = answer.len() as u32;
            answer[..2].copy_from_slice(&[0x80, 1]);
            answer[2..6].copy_from_slice(&len.to_be_bytes());
        }
        // The same to both questions: what clears says nothing of attributes.
        prop_assert!(clear(&mut Says(answer, asks)).is_err());
    }
}

/// A TPM in software that nobody here wrote: Debian's package `swtpm`.
struct Swtpm {
    process: Child,
    stream: UnixStream,
    _state: tempfile::TempDir,
    asked: bool,
}

impl Swtpm {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let socket = state.path().join("tpm");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", state.path().display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}", socket.display()))
            .stdout(Stdio::null())
            .spawn()
            .expect("Debian's package `swtpm`");
        let end = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < end, "swtpm does not answer: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { process, stream, _state: state, asked: false }
    }

    /// Sets the password of a hierarchy that has none (`TPM2_HierarchyChangeAuth`, part 3 §24.8).
    fn set_password(&mut self, hierarchy: u32, password: &[u8]) {
        let mut command = vec![0x80, 2, 0, 0, 0, 0];
        command.extend(0x129_u32.to_be_bytes());
        command.extend(hierarchy.to_be_bytes());
        command.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        command.extend((password.len() as u16).to_be_bytes());
        command.extend(password);
        let len = command.len() as u32;
        command[2..6].copy_from_slice(&len.to_be_bytes());
        let answer = self.transmit(&command).unwrap();
        assert_eq!(opened(&answer).unwrap().0, 0, "{answer:02x?}");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Tpm for Swtpm {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(command)?;
        let mut answer = vec![0; MAX_ANSWER];
        let read = self.stream.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    }

    fn ask_firmware(&mut self) -> io::Result<()> {
        self.asked = true;
        Ok(())
    }
}

const OWNER: u32 = 0x4000_0001;
const ENDORSEMENT: u32 = 0x4000_000b;

#[test]
fn a_real_tpm_that_a_tenant_took_is_cleared() {
    let mut tpm = Swtpm::start();
    for hierarchy in [OWNER, ENDORSEMENT, LOCKOUT] {
        tpm.set_password(hierarchy, b"canary-tpm");
    }
    assert_eq!(permanent(&mut tpm).unwrap() & 7, 7);
    clear(&mut tpm).unwrap();
    assert_eq!(permanent(&mut tpm).unwrap() & 7, 0);
    assert!(!tpm.asked);
}

#[test]
fn a_real_tpm_whose_firmware_keeps_the_platform_to_itself_is_cleared_by_its_lockout_hierarchy() {
    let mut tpm = Swtpm::start();
    tpm.set_password(PLATFORM, b"random");
    tpm.set_password(OWNER, b"canary-tpm");
    clear(&mut tpm).unwrap();
    assert_eq!(permanent(&mut tpm).unwrap() & 7, 0);
}

#[test]
fn of_a_real_tpm_that_refuses_the_firmware_is_asked_and_no_password_is_tried() {
    let mut tpm = Swtpm::start();
    tpm.set_password(PLATFORM, b"random");
    tpm.set_password(LOCKOUT, b"canary-tpm");
    let error = clear(&mut tpm).unwrap_err();
    assert!(matches!(error, TpmError::AskedFirmware(_)), "{error:?}");
    assert!(tpm.asked && error.to_string().contains("lockout password"), "{error}");
    // Not locked out (bit 9): nobody tried.
    assert_eq!(permanent(&mut tpm).unwrap() & (1 << 9), 0);
}
