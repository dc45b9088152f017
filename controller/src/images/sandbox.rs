//! A thread that reads a foreign file, and the tools it starts, kept to that file: Landlock
//! leaves it the source to read and the target to write, seccomp takes sockets from it, and
//! neither can be shaken off (`no_new_privs`).
//!
//! Both bind the calling thread and what it starts, so the work gets a thread of its own and
//! the rest of the controller stays as it was. A kernel that has only a part of it gives that
//! part; [`Given`] says which, in the log at every start and in `doctor`.
//!
//! What it does not do: another user, or a network namespace. Both want privileges that the
//! controller's unit gives up.

use std::{collections::BTreeMap, fmt, io, path::PathBuf, thread};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use tokio::sync::oneshot;

/// The newest Landlock this asks for: files, truncation, TCP, devices, signals.
const NEWEST: ABI = ABI::V6;

/// Where programs and their libraries are; to be read and run, never written.
const PROGRAMS: [&str; 6] = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/sys/devices/system/cpu"];

/// What no converter of images needs, and what would lead out: sockets of any kind, io_uring
/// (which opens them behind the filter's back), changes to files by their name, other processes.
const REFUSED: [libc::c_long; 17] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_io_uring_setup,
    libc::SYS_truncate,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_kill,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_unshare,
    libc::SYS_bpf,
];

/// The calls of the x32 convention have the same numbers with this bit: the same program could
/// make them by another name.
const X32: i64 = 0x4000_0000;

/// Which files the work may touch.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach {
    /// Files to read.
    pub(super) read: Vec<PathBuf>,
    /// Files to write; they must exist.
    pub(super) write: Vec<PathBuf>,
    /// Whether it starts programs.
    pub(super) programs: bool,
}

/// How far the kernel keeps such work to its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// To those alone.
    All,
    /// The kernel is older than what was asked for: other files can be neither read nor
    /// written, but something beside is not held back.
    Most,
    /// Not at all.
    None,
}

/// What this host's kernel gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Landlock.
    pub files: Files,
    /// Whether seccomp keeps it from making sockets.
    pub no_sockets: bool,
}

impl Given {
    /// Whether nothing is missing.
    pub fn is_whole(self) -> bool {
        self == Self { files: Files::All, no_sockets: true }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.files {
            Files::All => "reads and writes its own files alone",
            Files::Most => "reads and writes its own files alone, but this kernel's Landlock is an old one",
            Files::None => "can read every file that the controller can: this kernel has no Landlock",
        })?;
        f.write_str(match self.no_sockets {
            true => ", and opens no sockets",
            false => ", and can open sockets: this kernel has no seccomp filters",
        })
    }
}

/// What this host gives, by trying it.
pub fn probe() -> Given {
    let tried = thread::spawn(|| confine(&Reach::default())).join();
    tried.ok().and_then(Result::ok).unwrap_or(Given { files: Files::None, no_sockets: false })
}

/// Does `work` on a thread that is kept to `reach`, together with whatever it starts.
pub(super) async fn confined<T: Send + 'static>(
    reach: Reach,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let handle = tokio::runtime::Handle::current();
    thread::Builder::new().name("image".into()).spawn(move || {
        let _runtime = handle.enter();
        let result = confine(&reach).map(|_| work());
        // Nobody waits any more: the import was given up.
        let _ = done.send(result);
    })?;
    result.await.map_err(|_| io::Error::other("the work on the file broke off"))?
}

/// Confines this thread for good.
fn confine(reach: &Reach) -> io::Result<Given> {
    nix::sys::prctl::set_no_new_privs()?;
    let files = keep_to(reach).map_err(io::Error::other)?;
    let no_sockets = match refuse() {
        Ok(()) => true,
        Err(seccompiler::Error::Prctl(_) | seccompiler::Error::Seccomp(_)) => false,
        Err(error) => return Err(io::Error::other(error)),
    };
    Ok(Given { files, no_sockets })
}

fn keep_to(reach: &Reach) -> Result<Files, RulesetError> {
    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = Vec::new();
    rules.extend(reach.read.iter().map(|path| (path.clone(), AccessFs::ReadFile.into())));
    let writing = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    rules.extend(reach.write.iter().map(|path| (path.clone(), writing)));
    if reach.programs {
        rules.push(("/dev/null".into(), AccessFs::ReadFile | AccessFs::WriteFile));
        rules.extend(PROGRAMS.iter().map(|path| (path.into(), AccessFs::from_read(NEWEST))));
    }
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (path, access) in rules {
        // What is not there needs no rule.
        let Ok(fd) = PathFd::new(&path) else { continue };
        let is_directory = path.is_dir();
        let access = if is_directory { access } else { access & AccessFs::from_file(NEWEST) };
        ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Files::All,
        RulesetStatus::PartiallyEnforced => Files::Most,
        RulesetStatus::NotEnforced => Files::None,
    })
}

fn refuse() -> Result<(), seccompiler::Error> {
    let rules: BTreeMap<_, _> =
        REFUSED.iter().flat_map(|&call| [(call, Vec::new()), (call | X32, Vec::new())]).collect();
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpStream, process::Stdio};

    use super::*;

    #[test]
    fn this_kernel_gives_all_of_it() {
        assert_eq!(probe(), Given { files: Files::All, no_sockets: true });
        assert!(probe().is_whole());
    }

    #[tokio::test]
    async fn only_the_source_is_read_and_only_the_target_written() {
        let dir = tempfile::tempdir().unwrap();
        let [source, target, other] = ["source", "target", "other"].map(|name| dir.path().join(name));
        for file in [&source, &target, &other] {
            fs::write(file, "before").unwrap();
        }
        let reach = Reach { read: vec![source.clone()], write: vec![target.clone()], programs: false };
        let paths = [source.clone(), target.clone(), other.clone()];
        confined(reach, move || {
            let [source, target, other] = paths;
            assert_eq!(fs::read(&source).unwrap(), b"before");
            fs::write(&target, "after").unwrap();
            for refused in [
                fs::read(&other).map(drop),
                fs::write(&other, "after"),
                fs::write(&source, "after"),
                fs::remove_file(&target),
                fs::write(other.with_extension("new"), "after"),
                fs::read("/etc/passwd").map(drop),
                fs::read("/proc/self/environ").map(drop),
                nix::unistd::truncate(&source, 0).map_err(io::Error::from),
            ] {
                let kind = refused.unwrap_err().kind();
                assert_eq!(kind, io::ErrorKind::PermissionDenied);
            }
        })
        .await
        .unwrap();
        assert_eq!(
            [&source, &target, &other].map(|file| fs::read(file).unwrap()),
            [b"before".as_slice(), b"after", b"before"]
        );
    }

    #[tokio::test]
    async fn no_socket_is_opened_and_others_of_this_process_still_can() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let refused = confined(Reach::default(), move || {
            [
                TcpStream::connect(at).map(drop),
                std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
                std::os::unix::net::UnixDatagram::unbound().map(drop),
            ]
            .map(|tried| tried.unwrap_err().kind())
        });
        assert_eq!(refused.await.unwrap(), [io::ErrorKind::PermissionDenied; 3]);
        TcpStream::connect(at).unwrap();
    }

    /// A program stands for a converter that a hostile file has taken over.
    async fn taken_over(reach: Reach, script: String) -> std::process::Output {
        let child = confined(reach, move || {
            tokio::process::Command::new("sh")
                .args(["-c", &script])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        });
        child.await.unwrap().unwrap().wait_with_output().await.unwrap()
    }

    #[tokio::test]
    async fn a_program_that_is_started_there_is_kept_to_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [source, secret] = ["source", "secret"].map(|name| dir.path().join(name));
        fs::write(&source, "image").unwrap();
        fs::write(&secret, "key").unwrap();
        let reach = Reach { read: vec![source.clone()], write: Vec::new(), programs: true };
        let done = taken_over(reach.clone(), format!("cat {}", source.display())).await;
        assert_eq!(done.stdout, b"image", "{done:?}");
        for script in [
            format!("cat {}", secret.display()),
            "cat /etc/passwd".to_owned(),
            format!("echo x > {}", source.display()),
            "bash -c 'exec 3<>/dev/tcp/127.0.0.1/1 || exit 9'".to_owned(),
            "kill -0 $PPID".to_owned(),
        ] {
            let done = taken_over(reach.clone(), script.clone()).await;
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(!done.status.success() && done.stdout.is_empty(), "{script}: {done:?}");
            assert!(said.contains("ermission denied") || said.contains("not permitted"), "{script}: {said}");
        }
    }
}
