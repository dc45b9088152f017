//! Makes a raw file of one that holds a virtual disk, by qemu-img: with bounded memory, time
//! and output, confined to the two files, and without this process's environment.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::{
    ImportError, qcow2,
    sandbox::{Reach, confined},
    vmdk,
};

/// The longest a conversion may take. 64 GiB at a slow disk's 50 MB/s take 22 minutes.
const CONVERSION: Duration = Duration::from_secs(45 * 60);

/// Memory a conversion may use. qemu-img needs less than 200 MB for the largest images.
const CONVERSION_MEMORY: u64 = 2 << 30;

/// What a file is, by its own header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The bytes of a disk.
    Raw,
    /// A qcow2 file with a disk of so many bytes, which stands by itself.
    Qcow2(u64),
    /// A vmdk file with a disk of so many bytes, which stands by itself.
    Vmdk(u64),
}

impl Format {
    /// Looks at a file's header; one that names other files is refused.
    pub(super) fn of(path: &Path) -> Result<Self, ImportError> {
        let mut file = File::open(path)?;
        let mut head = Vec::new();
        (&mut file).take(vmdk::HEAD.max(qcow2::HEADER) as u64).read_to_end(&mut head)?;
        if head.starts_with(&qcow2::MAGIC) {
            let size = qcow2::check(&head).map_err(|error| ImportError::Unacceptable("qcow2", error.to_string()))?;
            return Ok(Self::Qcow2(size));
        }
        let refused = |error: vmdk::Unacceptable| ImportError::Unacceptable("vmdk", error.to_string());
        if vmdk::OTHERS.iter().any(|other| head.starts_with(other)) {
            return Err(refused(vmdk::Unacceptable::Descriptor));
        }
        if !head.starts_with(&vmdk::MAGIC) {
            return Ok(Self::Raw);
        }
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(vmdk::TAIL as u64)))?;
        let mut tail = Vec::new();
        file.take(vmdk::TAIL as u64).read_to_end(&mut tail)?;
        vmdk::check(&head, &tail).map(Self::Vmdk).map_err(refused)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2(_) => "qcow2",
            Self::Vmdk(_) => "vmdk",
        }
    }
}

/// Makes the new raw file `to`, of `size` bytes, of a file whose header was accepted.
pub(super) async fn convert(format: Format, from: &Path, to: &Path, size: u64) -> Result<(), ImportError> {
    let name = format.name();
    // Reading beyond a shortened file yields zeros, silently; `check` is what notices it.
    // Its exit code 3 means that space is wasted, which is none of our business.
    qemu_img(name, "check", &["-q", "-f", name], from, None, size, &[0, 3]).await?;
    File::create_new(to)?;
    qemu_img(name, "convert", &["-f", name, "-O", "raw"], from, Some(to), size, &[0]).await
}

async fn qemu_img(
    format: &'static str,
    verb: &'static str,
    options: &[&str],
    from: &Path,
    to: Option<&Path>,
    size: u64,
    good: &[i32],
) -> Result<(), ImportError> {
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--as={CONVERSION_MEMORY}"))
        .arg(format!("--cpu={}", CONVERSION.as_secs()))
        .arg(format!("--fsize={}", size.max(1 << 20)))
        .arg("--core=0")
        .args(["qemu-img", verb])
        .args(options)
        .arg(from)
        .args(to)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let cannot = |error: std::io::Error| {
        ImportError::Converter(format!("it cannot be started ({error}); is qemu-utils installed?"))
    };
    let reach =
        Reach { read: vec![from.to_owned()], write: to.map(Path::to_owned).into_iter().collect(), programs: true };
    let child = confined(reach, move || command.spawn()).await.and_then(|child| child).map_err(cannot)?;
    let output = tokio::time::timeout(CONVERSION, child.wait_with_output())
        .await
        .map_err(|_| ImportError::Converter(format!("it took longer than {} minutes", CONVERSION.as_secs() / 60)))?
        .map_err(cannot)?;
    match output.status.code() {
        Some(code) if good.contains(&code) => Ok(()),
        Some(2) if verb == "check" => {
            Err(ImportError::Unacceptable(format, "its tables are damaged, or it was cut short".into()))
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().lines().last().unwrap_or("it said nothing").chars().take(300).collect::<String>();
            Err(ImportError::Converter(format!("{}: {said}", output.status)))
        }
    }
}
