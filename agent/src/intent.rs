//! The rack's intent on this node's disk: what the controller wants, acted from also while
//! the controller is away. Boot keeps a copy of its own in the same way.
//!
//! Invariants:
//! - What [`Store::store`] returned for is on stable storage, whole: the file is replaced by
//!   renaming a finished one over it.
//! - The revision only moves forward. An older one is answered with the newer on disk.
//! - An intent for another rack is refused.
//! - Secrets in it are sealed in the file, with a key in a file of its own beside it: a copy of
//!   the one tells nothing without the other.
//! - A file that cannot be read is moved aside and named in the log; the node then has no
//!   intent until the next one comes, instead of failing at every start.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use rackhand_common::{
    id::RackId,
    intent::{Intent, MachineIntent},
    seal::{self, Seal, Sealed as _},
};
use rackhand_fail_points::fail_point;
use tokio::sync::watch;

/// Name of the file in the state directory.
const FILE: &str = "intent.json";

/// The key of the secrets in it, in hexadecimal.
const KEY: &str = "seal.key";

/// A handle to the stored intent.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: PathBuf,
    seal: Seal,
    rack: Option<RackId>,
    current: watch::Sender<Option<Arc<Intent>>>,
    /// Held while the file is being replaced.
    writing: tokio::sync::Mutex<()>,
}

/// Why an intent is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is for a rack that this node does not serve.
    #[error("the intent is for rack {wanted}, this node serves rack {ours}")]
    OtherRack {
        /// The rack the intent is for.
        wanted: RackId,
        /// The rack of this node.
        ours: RackId,
    },
    /// The disk is full or failing.
    #[error("cannot write {path}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// The intent stored in this directory, whatever rack it is for.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::open_any(dir, None)
    }

    /// The intent stored in this directory by a node that serves `rack`; one of another rack,
    /// from before the node was enrolled again, is moved aside.
    pub fn open_for(dir: &Path, rack: RackId) -> io::Result<Self> {
        Self::open_any(dir, Some(rack))
    }

    fn open_any(dir: &Path, rack: Option<RackId>) -> io::Result<Self> {
        let file = dir.join(FILE);
        let seal = Seal::new(&key(dir)?);
        let found = match fs::read(&file) {
            Ok(bytes) => match parse(&bytes, rack).and_then(|stored| opened(stored, &seal)) {
                Ok((intent, was_sealed)) => {
                    if !was_sealed {
                        replace(&file, &sealed(&intent, &seal))?;
                    }
                    Some(Arc::new(intent))
                }
                Err(reason) => {
                    let aside = dir.join(format!("{FILE}.damaged"));
                    fs::rename(&file, &aside)?;
                    tracing::error!(
                        reason,
                        kept = %aside.display(),
                        "the stored intent cannot be used and was moved aside; the controller will send it again"
                    );
                    None
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let current = watch::Sender::new(found);
        Ok(Self(Arc::new(Inner { file, seal, rack, current, writing: tokio::sync::Mutex::new(()) })))
    }

    /// The intent to act on.
    pub fn current(&self) -> Option<Arc<Intent>> {
        self.0.current.borrow().clone()
    }

    /// Its revision; zero for none.
    pub fn revision(&self) -> u64 {
        self.0.current.borrow().as_ref().map_or(0, |intent| intent.revision)
    }

    /// The intent and its successors.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Intent>>> {
        self.0.current.subscribe()
    }

    /// Stores an intent, unless a newer one is here already; gives the revision that is now
    /// on disk.
    pub async fn store(&self, intent: Intent) -> Result<u64, Refused> {
        let _writing = self.0.writing.lock().await;
        let current = self.current();
        let ours = self.0.rack.or(current.as_ref().map(|intent| intent.rack));
        if let Some(ours) = ours.filter(|ours| *ours != intent.rack) {
            return Err(Refused::OtherRack { wanted: intent.rack, ours });
        }
        if let Some(current) = current.filter(|current| current.revision >= intent.revision) {
            return Ok(current.revision);
        }
        let revision = intent.revision;
        let bytes = sealed(&intent, &self.0.seal);
        let path = self.0.file.clone();
        let write = move || fail_point!("intent.replace", replace(&path, &bytes));
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
        written.flatten().map_err(|source| Refused::Disk { path: self.0.file.clone(), source })?;
        self.0.current.send_replace(Some(Arc::new(intent)));
        Ok(revision)
    }
}

fn parse(bytes: &[u8], rack: Option<RackId>) -> Result<Intent, String> {
    let intent: Intent = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    match rack {
        Some(rack) if rack != intent.rack => Err(format!("it is for rack {}, this node serves {rack}", intent.rack)),
        _ => Ok(intent),
    }
}

/// The intent as its file has it.
fn sealed(intent: &Intent, seal: &Seal) -> Vec<u8> {
    let machine = |machine: &MachineIntent| MachineIntent {
        order: machine.order.as_ref().map(|order| order.sealed(seal, order.run)),
        ..machine.clone()
    };
    let stored = Intent { machines: intent.machines.iter().map(machine).collect(), ..intent.clone() };
    serde_json::to_vec_pretty(&stored).expect("an intent always serializes")
}

/// The intent that a file had, and whether its secrets were sealed: those of an earlier version
/// are in clear. An order whose secrets do not open is left out and the revision forgotten, so
/// that the rack is served and the controller sends the intent again.
fn opened(mut intent: Intent, seal: &Seal) -> Result<(Intent, bool), String> {
    let (mut was_sealed, mut lost) = (true, false);
    for machine in &mut intent.machines {
        let Some(order) = machine.order.take() else { continue };
        let user_data = order.work.deploy().and_then(|deploy| deploy.host.user_data.as_ref());
        let clear = user_data.is_some_and(|data| !seal::is_sealed(data));
        was_sealed &= !clear;
        let run = order.run;
        machine.order = if clear { Some(order) } else { order.opened(seal, run).ok() };
        lost |= machine.order.is_none();
    }
    if lost {
        tracing::error!("secrets in the stored intent were sealed with another key; the controller will send it again");
        intent.revision = 0;
    }
    Ok((intent, was_sealed))
}

/// The key in this directory; made where there is none.
pub(crate) fn key(dir: &Path) -> io::Result<[u8; 32]> {
    let path = dir.join(KEY);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = hex::encode(seal::fresh_key());
            replace(&path, text.as_bytes())?;
            text
        }
        read => read?,
    };
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|_| io::Error::other(format!("{} is damaged", path.display())))?;
    Ok(key)
}

/// Puts these bytes in the file's place, all or nothing, on stable storage. The file is readable
/// by the directory's owner alone, also when root enrols a node that runs as another user.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let owner = fs::metadata(dir)?;
    if file.metadata()?.uid() != owner.uid() {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use rackhand_common::{
        id::{Epoch, MachineId, RunId},
        image::Digest,
        intent::{Boot, Deploy, DiskRule, Host, Network, Order, Work},
        machine::{Mac, Mainboard},
    };

    use super::*;

    #[test]
    fn a_file_is_its_owners_alone_also_after_a_crash_left_another_beside() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join("identity.new");
        fs::write(&beside, "half").unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o666)).unwrap();
        let path = dir.path().join("identity.json");
        replace(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    fn intent(rack: RackId, revision: u64) -> Intent {
        let network = Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            delegated: ("10.77.0.200".parse().unwrap(), "10.77.0.250".parse().unwrap()),
        };
        Intent { revision, rack, name: "r1".into(), network, machines: Vec::new() }
    }

    #[tokio::test]
    async fn an_intent_survives_a_restart_and_revisions_only_move_forward() {
        let dir = tempfile::tempdir().unwrap();
        let rack = RackId::fresh();
        let store = Store::open_for(dir.path(), rack).unwrap();
        assert_eq!(store.current(), None);
        assert_eq!(store.store(intent(rack, 3)).await.unwrap(), 3);
        assert_eq!(store.store(intent(rack, 2)).await.unwrap(), 3);
        assert_eq!(store.store(intent(rack, 5)).await.unwrap(), 5);
        let again = Store::open_for(dir.path(), rack).unwrap();
        assert_eq!(again.current().unwrap().revision, 5);
    }

    #[tokio::test]
    async fn the_intent_of_another_rack_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.store(intent(RackId::fresh(), 1)).await.unwrap();
        let refused = store.store(intent(RackId::fresh(), 2)).await;
        assert!(matches!(refused, Err(Refused::OtherRack { .. })), "{refused:?}");
        assert_eq!(store.revision(), 1);
    }

    #[tokio::test]
    async fn a_damaged_file_is_moved_aside_and_the_node_starts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"{\"revision\": 7, \"ra").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.current(), None);
        assert!(dir.path().join("intent.json.damaged").exists());
        let rack = RackId::fresh();
        assert_eq!(store.store(intent(rack, 1)).await.unwrap(), 1);
        assert_eq!(Store::open_for(dir.path(), rack).unwrap().revision(), 1);
        let enrolled_elsewhere = Store::open_for(dir.path(), RackId::fresh()).unwrap();
        assert_eq!(enrolled_elsewhere.current(), None);
    }

    #[test]
    fn a_file_is_its_directorys_owners_also_when_root_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        // Whoever is not root cannot give a directory away, and has files of its own anyhow.
        let _ = std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534));
        let path = dir.path().join("it.json");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(path.metadata().unwrap().uid(), dir.path().metadata().unwrap().uid());
        assert_eq!((path.metadata().unwrap().mode() & 0o777, std::fs::read(&path).unwrap()), (0o600, b"2".to_vec()));
    }

    #[tokio::test]
    async fn user_data_is_not_in_the_file_in_clear_and_there_again_after_a_restart() {
        const CANARY: &str = "canary-51c0-in-user-data";
        let dir = tempfile::tempdir().unwrap();
        let rack = RackId::fresh();
        let machine = |mainboard| {
            let deploy = Deploy {
                manifest: Digest([7; 32]),
                disk: DiskRule::Smallest,
                host: Host { name: "m-1".into(), ssh_keys: Vec::new(), user_data: Some(CANARY.into()) },
            };
            let work = Work::deploying(deploy, mainboard);
            let order = Order { run: RunId::fresh(), attempt: 1, disks: vec!["d1".into()], work };
            MachineIntent {
                id: MachineId::fresh(),
                name: "m-1".into(),
                macs: vec![Mac([2, 0, 0, 0, 0, 1])],
                address: "10.77.0.9".parse().unwrap(),
                epoch: Epoch(1),
                boot: Boot::Installer,
                order: Some(order),
            }
        };
        let machines = vec![machine(None), machine(Some(Mainboard { serial: "b1".into(), uuid: None }))];
        let wanted = Intent { machines, ..intent(rack, 3) };
        let is_there = || {
            let mut files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
            files.any(|file| std::fs::read_to_string(file).unwrap().contains(CANARY))
        };
        Store::open(dir.path()).unwrap().store(wanted.clone()).await.unwrap();
        assert!(!is_there());
        assert_eq!(Store::open(dir.path()).unwrap().current().as_deref(), Some(&wanted));
        let mode =
            |name| std::os::unix::fs::PermissionsExt::mode(&dir.path().join(name).metadata().unwrap().permissions());
        assert_eq!((mode(KEY) & 0o777, mode(FILE) & 0o777), (0o600, 0o600));

        // As an earlier version left it.
        std::fs::write(dir.path().join(FILE), serde_json::to_vec(&wanted).unwrap()).unwrap();
        assert!(is_there());
        assert_eq!(Store::open(dir.path()).unwrap().current().as_deref(), Some(&wanted));
        assert!(!is_there());

        // The key is lost: the machines are served, and the controller is asked for the rest.
        std::fs::remove_file(dir.path().join(KEY)).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.revision(), 0);
        assert!(store.current().unwrap().machines.iter().all(|machine| machine.order.is_none()));
        assert_eq!(store.store(wanted.clone()).await.unwrap(), 3);
        assert_eq!(Store::open(dir.path()).unwrap().current().as_deref(), Some(&wanted));
    }

    /// Power lost while the next revision was being written: a stray half of a new file.
    #[tokio::test]
    async fn half_of_a_newer_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let rack = RackId::fresh();
        Store::open(dir.path()).unwrap().store(intent(rack, 1)).await.unwrap();
        std::fs::write(dir.path().join("intent.new"), b"{\"revi").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.revision(), 1);
        assert_eq!(store.store(intent(rack, 2)).await.unwrap(), 2);
    }
}
