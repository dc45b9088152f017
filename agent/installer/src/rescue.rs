//! Letting people log in to a machine beside its own system: the toolbox's SSH server, for as long as an
//! order to rescue stands.
//!
//! Invariants:
//! - Root logs in with the keys of the order and with nothing else; there are no passwords.
//! - The host key is made in memory for this start. Its fingerprint is told to boot on the pinned channel,
//!   and people compare it with what their `ssh` shows.
//! - Nothing here touches a disk. When the order is taken back nobody is logged in any more, and what people
//!   had mounted is unmounted before the machine restarts.

use std::{
    fs::{self, File, Permissions},
    io::{self, Read as _},
    net::{Ipv4Addr, TcpStream},
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rackhand_common::{channel::News, event::Login};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::{
    modules::Modules,
    pid1::{self, Started},
    task::{Reporter, TaskError},
    toolbox::{Toolbox, Tools},
};

/// An SSH server that people log in to. Dropped, it ends with all who are logged in.
pub trait Ssh: Send {
    /// Its TCP port.
    fn port(&self) -> u16;
    /// Fingerprint of its host key, as `ssh-keygen -l` prints it.
    fn host_key(&self) -> &str;
    /// Starts it again when it has ended.
    fn look(&mut self) -> io::Result<()>;
}

/// How often it is looked whether the server still runs.
const LOOK: Duration = Duration::from_secs(2);

/// Lets the holders of these keys in until the order is withdrawn, or says why it cannot.
pub async fn let_in(
    tools: Arc<dyn Tools>,
    keys: Vec<String>,
    reporter: &impl Reporter,
    withdrawn: &CancellationToken,
) -> TaskError {
    let started = spawn_blocking(move || tools.let_in(&keys)).await.expect("starting a server does not panic");
    let mut ssh = match started {
        Ok(ssh) => ssh,
        Err(error) => return TaskError::Ssh(error),
    };
    tracing::info!(port = ssh.port(), host_key = ssh.host_key(), "people can log in");
    reporter.tell(News::Rescue { port: ssh.port(), host_key: ssh.host_key().to_owned() }).await;
    while withdrawn.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let looked = spawn_blocking(move || ssh.look().map(|()| ssh)).await.expect("looking does not panic");
        match looked {
            Ok(running) => ssh = running,
            Err(error) => return TaskError::Ssh(error),
        }
    }
    tracing::info!("nobody is let in any more");
    spawn_blocking(move || drop(ssh)).await.expect("ending a server does not panic");
    TaskError::Withdrawn
}

/// The toolbox's `sshd`.
#[derive(Debug)]
pub struct Sshd {
    toolbox: Toolbox,
    host_key: String,
    running: Option<Started>,
}

/// The one that everybody's client uses.
const PORT: u16 = 22;

/// As seen in the toolbox.
const HOST_KEY: &str = "/etc/ssh/rescue_host_key";
const CONFIG: &str = "/etc/ssh/rescue_config";
const AUTHORIZED_KEYS: &str = "/root/.ssh/authorized_keys";

/// Modules of what people mount: file systems, a boot partition's names, LVM and mirrored disks.
const FOR_PEOPLE: &[&str] = &["ext4", "xfs", "vfat", "nls_ascii", "nls_cp437", "dm_mod", "raid1"];

/// How long making a key or the server's first answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Sshd {
    /// A server with a fresh host key that lets these in; it answers on return.
    pub fn start(toolbox: &Toolbox, keys: &[String]) -> io::Result<Self> {
        // The kernel asks for them by a program that this system does not have.
        match Modules::of_running_kernel() {
            Ok(mut modules) => FOR_PEOPLE.iter().for_each(|name| modules.load(name)),
            Err(error) => tracing::warn!(%error, "no module tables: what the kernel has built in has to do"),
        }
        let at = |path: &str| toolbox.root().join(&path[1..]);
        let home = at("/root/.ssh");
        fs::create_dir_all(&home)?;
        fs::set_permissions(&home, Permissions::from_mode(0o700))?;
        write(&at(AUTHORIZED_KEYS), &(keys.join("\n") + "\n"))?;
        write(&at(CONFIG), &config())?;
        for old in [HOST_KEY.to_owned(), format!("{HOST_KEY}.pub")] {
            match fs::remove_file(at(&old)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let mut make = toolbox.command("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-C", "rescue", "-f", HOST_KEY]);
        finish(&mut make)?;
        let told = at("/run/rescue_host_key");
        let mut tell = toolbox.command("ssh-keygen");
        tell.args(["-l", "-E", "sha256", "-f", HOST_KEY]).stdout(File::create(&told)?);
        finish(&mut tell)?;
        let host_key = fingerprint(&fs::read_to_string(&told)?)
            .ok_or_else(|| io::Error::other("ssh-keygen told no fingerprint of the host key"))?;
        let mut server = Self { toolbox: toolbox.clone(), host_key, running: None };
        server.look()?;
        server.answers()?;
        Ok(server)
    }

    /// Waits until it greets (RFC 4253, section 4.2).
    fn answers(&mut self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let greeted = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut greeting = [0; 4];
                stream.read_exact(&mut greeting)?;
                Ok(greeting == *b"SSH-")
            });
            if let Ok(true) = greeted {
                return Ok(());
            }
            if let Some(status) = self.running.as_mut().map(Started::try_wait).transpose()?.flatten() {
                return Err(io::Error::other(format!("the SSH server ended at once: {status}")));
            }
            if Instant::now() > end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the SSH server does not answer"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Ssh for Sshd {
    fn port(&self) -> u16 {
        PORT
    }

    fn host_key(&self) -> &str {
        &self.host_key
    }

    fn look(&mut self) -> io::Result<()> {
        if let Some(running) = &mut self.running {
            let Some(status) = running.try_wait()? else { return Ok(()) };
            tracing::warn!(%status, "the SSH server ended and is started again");
        }
        // Executed anew for each who logs in, it has to know its own path.
        let mut command = self.toolbox.command("/usr/sbin/sshd");
        self.running = Some(pid1::spawn(command.args(["-D", "-f", CONFIG]))?);
        Ok(())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.running = None;
        end_all(self.toolbox.root());
        let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
        for place in peoples_mounts(&mounts, self.toolbox.root()) {
            if umount2(&place, MntFlags::empty()).is_ok() {
                continue;
            }
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            if let Err(errno) = mount(None::<&str>, &place, None::<&str>, read_only, None::<&str>) {
                tracing::warn!(%errno, place = %place.display(), "cannot be unmounted");
            }
        }
    }
}

/// `sshd_config(5)`: keys of root, and nothing else that anybody could log in by.
fn config() -> String {
    format!(
        "Port {PORT}\nHostKey {HOST_KEY}\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n\
         AllowUsers root\nAuthenticationMethods publickey\nPubkeyAuthentication yes\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nAuthorizedKeysFile {AUTHORIZED_KEYS}\nPermitUserEnvironment no\n\
         X11Forwarding no\nPrintMotd no\nPrintLastLog no\nUseDNS no\nClientAliveInterval 30\nMaxStartups 10:30:60\n\
         Subsystem sftp internal-sftp\n"
    )
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
}

/// Runs a program to its end.
fn finish(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (mut started, end) = (pid1::spawn(command)?, Instant::now() + PATIENCE);
    loop {
        match started.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("{name}: {status}"))),
            None if Instant::now() > end => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{name} does not end")));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The fingerprint in what `ssh-keygen -l` prints: bits, fingerprint, comment, kind.
fn fingerprint(line: &str) -> Option<String> {
    line.split_whitespace().nth(1).filter(|word| Login::is_fingerprint(word)).map(ToOwned::to_owned)
}

/// How often those who began others in the same moment are looked for.
const ROUNDS: u32 = 100;

/// Ends every process whose root directory this is: whoever is logged in is in a process group of their own.
fn end_all(root: &Path) {
    for _ in 0..ROUNDS {
        let mut found = false;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_link(entry.path().join("root")).is_ok_and(|of| of == root) {
                // One that is gone by now is what is wanted.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                found = true;
            }
        }
        if !found {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    tracing::warn!("some who were logged in are still there");
}

/// What people mounted beneath `root`, the latest first, from `/proc/self/mounts` (proc_pid_mounts(5)); not
/// the kernel's own file systems there.
fn peoples_mounts(mounts: &[u8], root: &Path) -> Vec<PathBuf> {
    let ours = ["dev", "proc", "sys"].map(|name| root.join(name));
    let places = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(1));
    let mut places: Vec<_> = places
        .map(unescaped)
        .filter(|place| place.starts_with(root) && place != root && !ours.iter().any(|ours| place.starts_with(ours)))
        .collect();
    places.reverse();
    places
}

/// A field of that file: blanks and backslashes are told as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits.filter(|_| *first == b'\\') {
            Some([a, b, c]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_from_what_ssh_keygen_prints() {
        let line = "256 SHA256:uNiVztksCsDhcc0u9e8BrGqtQJ1+sHxvzeLiVK/7rV0 rescue (ED25519)\n";
        assert_eq!(fingerprint(line).unwrap(), "SHA256:uNiVztksCsDhcc0u9e8BrGqtQJ1+sHxvzeLiVK/7rV0");
        assert_eq!(fingerprint("256 MD5:00:11 rescue (ED25519)"), None);
        assert_eq!(fingerprint(""), None);
    }

    #[test]
    fn what_people_mounted_is_found_the_latest_first_whatever_they_called_it() {
        let mounts = b"devtmpfs /dev devtmpfs rw 0 0\n/dev/loop0 /run/toolbox/lower squashfs ro 0 0\n\
            overlay /run/toolbox/root overlay rw 0 0\nproc /run/toolbox/root/proc proc rw 0 0\n\
            /dev/sda2 /run/toolbox/root/mnt ext4 rw 0 0\n/dev/sda1 /run/toolbox/root/mnt/boot\\040of\\134 vfat rw 0 0\n\
            tmpfs /run/toolbox/root/dev/shm tmpfs rw 0 0\nbroken\n";
        let found = peoples_mounts(mounts, Path::new("/run/toolbox/root"));
        assert_eq!(found, [Path::new("/run/toolbox/root/mnt/boot of\\"), Path::new("/run/toolbox/root/mnt")]);
    }

    #[test]
    fn nobody_logs_in_without_a_key() {
        let config = config();
        for line in ["PasswordAuthentication no", "KbdInteractiveAuthentication no", "UsePAM no", "AllowUsers root"] {
            assert!(config.lines().any(|found| found == line), "{line}");
        }
    }
}
