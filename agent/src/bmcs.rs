//! The BMCs of this rack: how each is reached, as the controller says, and the one conversation
//! that is kept with it.
//!
//! Invariants:
//! - What [`Bmcs::store`] returned for is on stable storage, whole, with its passwords sealed. The
//!   revision only moves forward, and is that of the intent it came before.
//! - Boot is never told.
//! - A machine's BMC is asked in one conversation, as most have few sessions to give.
//! - The certificate that a BMC showed first is the only one that it is given its password over,
//!   until the controller says anew how it is reached.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use rackhand_bmc::{
    Bmc, BmcError, Credentials,
    ipmi::Ipmi,
    redfish::{Bounds, Fingerprint, Redfish, Target, Which},
};
use rackhand_common::{
    bmc::{self, Access, Look, Protocol, Seen},
    id::{MachineId, RackId},
    seal::Seal,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::intent::{Refused, key, replace};

/// Name of the file in the state directory.
const FILE: &str = "bmcs.json";

/// Ports of the protocols (IPMI 2.0 §13.1.2).
const IPMI: u16 = 623;
const HTTPS: u16 = 443;

/// How long one look may take: the controller waits a little longer.
const LOOK: Duration = Duration::from_secs(12);

/// A handle on the BMCs; clones are the same.
#[derive(Clone)]
pub struct Bmcs(Arc<Inner>);

struct Inner {
    file: PathBuf,
    seal: Seal,
    rack: RackId,
    networks: Option<Vec<IpNet>>,
    stored: Mutex<Stored>,
    /// Held while the file is being replaced.
    writing: tokio::sync::Mutex<()>,
    conversations: Mutex<HashMap<MachineId, Arc<Conversation>>>,
}

/// What is in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Stored {
    revision: u64,
    bmcs: BTreeMap<MachineId, Known>,
}

/// A BMC, in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    access: Access,
    /// SHA-256 of the certificate that it showed first, in hexadecimal.
    shown: Option<String>,
}

impl Known {
    fn believed(&self) -> Option<&str> {
        self.access.fingerprint.as_deref().or(self.shown.as_deref())
    }
}

/// What is kept of a BMC as long as it is reached in the same way.
struct Conversation {
    access: Access,
    line: tokio::sync::OnceCell<Line>,
}

/// What a BMC turned out to speak.
struct Line {
    protocol: Protocol,
    bmc: Arc<dyn Bmc>,
    /// The certificate it shows.
    fingerprint: Option<String>,
}

impl Bmcs {
    /// Those in this directory of a node that serves `rack`, asked in these networks only.
    pub fn open(dir: &Path, rack: RackId, networks: Option<Vec<IpNet>>) -> io::Result<Self> {
        let file = dir.join(FILE);
        let seal = Seal::new(&key(dir)?);
        let stored = match fs::read(&file) {
            Ok(bytes) => opened(&bytes, &seal).unwrap_or_else(|reason| {
                tracing::error!(reason, "the stored BMCs cannot be used; the controller will send them again");
                Stored::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error),
        };
        Ok(Self(Arc::new(Inner {
            file,
            seal,
            rack,
            networks,
            stored: Mutex::new(stored),
            writing: tokio::sync::Mutex::default(),
            conversations: Mutex::default(),
        })))
    }

    /// Of which revision they are; zero for none.
    pub fn revision(&self) -> u64 {
        self.stored().revision
    }

    /// Stores how the BMCs are reached, unless that is newer here already; gives the revision that
    /// is now on disk.
    pub async fn store(&self, wanted: bmc::Bmcs) -> Result<u64, Refused> {
        if wanted.rack != self.0.rack {
            return Err(Refused::OtherRack { wanted: wanted.rack, ours: self.0.rack });
        }
        let _writing = self.0.writing.lock().await;
        let before = self.stored().clone();
        if before.revision >= wanted.revision {
            return Ok(before.revision);
        }
        let known = |access: Access| {
            let same = before.bmcs.get(&access.machine).filter(|known| known.access == access);
            let shown = same.and_then(|known| known.shown.clone());
            (access.machine, Known { access, shown })
        };
        let stored = Stored { revision: wanted.revision, bmcs: wanted.bmcs.into_iter().map(known).collect() };
        self.write(stored).await
    }

    /// The BMC of a machine, when it is said how it is reached.
    pub fn of(&self, machine: MachineId) -> Option<Reached> {
        let known = self.stored().bmcs.get(&machine).cloned()?;
        let mut conversations = self.0.conversations.lock().unwrap_or_else(PoisonError::into_inner);
        let conversation = match conversations.get(&machine) {
            Some(conversation) if conversation.access == known.access => conversation.clone(),
            _ => {
                let fresh = Arc::new(Conversation { access: known.access.clone(), line: Default::default() });
                conversations.insert(machine, fresh.clone());
                fresh
            }
        };
        Some(Reached { bmcs: self.clone(), conversation, known })
    }

    /// Asks the BMC of a machine now: [`Seen`] as JSON, or why not in words.
    pub async fn look(&self, machine: MachineId, look: Look) -> Result<String, String> {
        let reached = self.of(machine).ok_or("nobody has said how its BMC is reached: `rackhand bmc set`")?;
        let seen = timeout(LOOK, reached.look(look)).await;
        let seen = seen.map_err(|_| format!("its BMC did not answer within {} s", LOOK.as_secs()))?;
        let seen = seen.map_err(|error| format!("its BMC: {error}"))?;
        Ok(serde_json::to_string(&seen).expect("what was seen always serializes"))
    }

    async fn write(&self, stored: Stored) -> Result<u64, Refused> {
        let revision = stored.revision;
        let bytes = sealed(&stored, &self.0.seal);
        let path = self.0.file.clone();
        let written = tokio::task::spawn_blocking(move || replace(&path, &bytes)).await.map_err(io::Error::other);
        written.flatten().map_err(|source| Refused::Disk { path: self.0.file.clone(), source })?;
        *self.stored() = stored;
        Ok(revision)
    }

    /// Keeps the certificate that a BMC showed first.
    async fn keep(&self, access: &Access, fingerprint: &str) -> Result<(), Refused> {
        let _writing = self.0.writing.lock().await;
        let mut stored = self.stored().clone();
        match stored.bmcs.get_mut(&access.machine) {
            Some(known) if known.access == *access && known.shown.is_none() => known.shown = Some(fingerprint.into()),
            _ => return Ok(()),
        }
        self.write(stored).await.map(drop)
    }

    fn stored(&self) -> std::sync::MutexGuard<'_, Stored> {
        self.0.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A BMC that can be asked.
pub struct Reached {
    bmcs: Bmcs,
    conversation: Arc<Conversation>,
    known: Known,
}

impl Reached {
    /// Who is asked; on the first call it is found out what the BMC speaks.
    pub async fn bmc(&self) -> Result<Arc<dyn Bmc>, BmcError> {
        Ok(self.line().await?.bmc.clone())
    }

    /// Asks it now.
    pub async fn look(&self, look: Look) -> Result<Seen, BmcError> {
        let line = self.line().await?;
        Ok(match look {
            Look::Identity => Seen::Identity {
                identity: line.bmc.identity().await?,
                power: line.bmc.power().await.ok(),
                protocol: line.protocol,
                fingerprint: line.fingerprint.clone(),
            },
            Look::Sensors => Seen::Sensors(line.bmc.sensors().await?),
            Look::Log => Seen::Log(line.bmc.log().await?),
            Look::Parts => Seen::Parts(line.bmc.parts().await?),
        })
    }

    async fn line(&self) -> Result<&Line, BmcError> {
        self.conversation.line.get_or_try_init(|| self.begin()).await
    }

    async fn begin(&self) -> Result<Line, BmcError> {
        let Access { at, protocol, user, password, .. } = &self.known.access;
        check_place(at.address, self.bmcs.0.networks.as_deref())?;
        let credentials = || Credentials { user: user.clone(), password: password.clone().into() };
        let ipmi = || {
            let bmc: Arc<dyn Bmc> = Arc::new(Ipmi::new(at.or(IPMI), credentials()));
            Line { protocol: Protocol::Ipmi, bmc, fingerprint: None }
        };
        if *protocol == Protocol::Ipmi {
            return Ok(ipmi());
        }
        let redfish = Redfish::new(Target {
            url: format!("https://{}", at.or(HTTPS)),
            credentials: credentials(),
            fingerprint: self.known.believed().map(fingerprint).transpose()?,
            system: Which::Only,
            bounds: Bounds::default(),
        })?;
        match redfish.greet().await {
            // Somebody answers, and is not believed: it is not asked in another way either.
            Err(error @ BmcError::Changed(_)) => return Err(error),
            Err(error) if *protocol == Protocol::Redfish => return Err(error),
            Err(error) => {
                tracing::debug!(bmc = %at, %error, "no Redfish there: it is asked by IPMI");
                return Ok(ipmi());
            }
            Ok(_) => {}
        }
        let fingerprint = redfish.fingerprint().map(|fingerprint| fingerprint.to_string());
        if let Some(fingerprint) = fingerprint.as_deref().filter(|_| self.known.believed().is_none()) {
            self.bmcs.keep(&self.known.access, fingerprint).await.map_err(|error| {
                BmcError::Refused(format!(
                    "its certificate could not be written down: {:#}",
                    anyhow::Error::from(error)
                ))
            })?;
        }
        Ok(Line { protocol: Protocol::Redfish, bmc: Arc::new(redfish), fingerprint })
    }
}

/// That a BMC can be at this address: what the controller says must not make the node talk to
/// itself.
fn check_place(address: IpAddr, networks: Option<&[IpNet]>) -> Result<(), BmcError> {
    let is_there = match networks {
        Some(networks) => networks.iter().any(|network| network.contains(&address)),
        None => !is_inward(address),
    };
    let advice = "is in none of the networks in which this node asks BMCs (`bmc.networks` in agent.toml)";
    is_there.then_some(()).ok_or_else(|| BmcError::Refused(format!("{address} {advice}")))
}

fn is_inward(address: IpAddr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || match address {
            IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
            IpAddr::V6(address) => {
                address.is_unicast_link_local() || address.to_ipv4_mapped().is_some_and(|inner| is_inward(inner.into()))
            }
        }
}

fn fingerprint(digits: &str) -> Result<Fingerprint, BmcError> {
    let mut bytes = [0; 32];
    let decoded = hex::decode_to_slice(digits, &mut bytes);
    decoded.map_err(|_| BmcError::Refused("its fingerprint is not 64 hexadecimal digits".into()))?;
    Ok(Fingerprint(bytes))
}

fn sealed(stored: &Stored, seal: &Seal) -> Vec<u8> {
    let seal = |(machine, known): (&MachineId, &Known)| {
        (*machine, Known { access: known.access.sealed(seal), shown: known.shown.clone() })
    };
    let stored = Stored { revision: stored.revision, bmcs: stored.bmcs.iter().map(seal).collect() };
    serde_json::to_vec_pretty(&stored).expect("what is stored always serializes")
}

fn opened(bytes: &[u8], seal: &Seal) -> Result<Stored, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let open = |(machine, known): (MachineId, Known)| {
        let access = known.access.opened(seal).map_err(|error| error.to_string())?;
        Ok((machine, Known { access, ..known }))
    };
    let bmcs = stored.bmcs.into_iter().map(open).collect::<Result<_, String>>()?;
    Ok(Stored { bmcs, ..stored })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(machine: MachineId, at: &str) -> Access {
        Access {
            machine,
            at: at.parse().unwrap(),
            protocol: Protocol::Either,
            user: "admin".into(),
            password: "canary-91aa".into(),
            fingerprint: None,
        }
    }

    fn wanted(rack: RackId, revision: u64, bmcs: Vec<Access>) -> bmc::Bmcs {
        bmc::Bmcs { revision, rack, bmcs }
    }

    #[tokio::test]
    async fn bmcs_survive_a_restart_with_their_passwords_sealed_and_revisions_only_move_forward() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = Bmcs::open(dir.path(), rack, None).unwrap();
        assert_eq!(bmcs.revision(), 0);
        assert_eq!(bmcs.store(wanted(rack, 3, vec![access(machine, "10.0.0.5")])).await.unwrap(), 3);
        assert_eq!(bmcs.store(wanted(rack, 2, Vec::new())).await.unwrap(), 3);
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(!text.contains("canary") && text.contains("10.0.0.5"), "{text}");
        let again = Bmcs::open(dir.path(), rack, None).unwrap();
        assert_eq!(again.revision(), 3);
        assert_eq!(again.of(machine).unwrap().known.access, access(machine, "10.0.0.5"));
        assert!(again.of(MachineId::fresh()).is_none());
        let refused = again.store(wanted(RackId::fresh(), 9, Vec::new())).await;
        assert!(matches!(refused, Err(Refused::OtherRack { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_certificate_is_kept_until_it_is_said_anew_how_the_bmc_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = Bmcs::open(dir.path(), rack, None).unwrap();
        let here = access(machine, "10.0.0.5");
        bmcs.store(wanted(rack, 1, vec![here.clone()])).await.unwrap();
        bmcs.keep(&here, "aa").await.unwrap();
        bmcs.keep(&here, "bb").await.unwrap();
        bmcs.store(wanted(rack, 2, vec![here.clone()])).await.unwrap();
        let again = Bmcs::open(dir.path(), rack, None).unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), Some("aa"));
        again.store(wanted(rack, 3, vec![access(machine, "10.0.0.6")])).await.unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), None);
        let told = Access { fingerprint: Some("cc".into()), ..here };
        again.store(wanted(rack, 4, vec![told])).await.unwrap();
        assert_eq!(again.of(machine).unwrap().known.believed(), Some("cc"));
    }

    #[tokio::test]
    async fn a_conversation_is_kept_as_long_as_the_bmc_is_reached_in_the_same_way() {
        let dir = tempfile::tempdir().unwrap();
        let (rack, machine) = (RackId::fresh(), MachineId::fresh());
        let bmcs = Bmcs::open(dir.path(), rack, None).unwrap();
        bmcs.store(wanted(rack, 1, vec![access(machine, "10.0.0.5")])).await.unwrap();
        let first = bmcs.of(machine).unwrap().conversation;
        assert!(Arc::ptr_eq(&first, &bmcs.of(machine).unwrap().conversation));
        bmcs.store(wanted(rack, 2, vec![access(machine, "10.0.0.6")])).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &bmcs.of(machine).unwrap().conversation));
    }

    #[test]
    fn bmcs_are_asked_where_they_may_be_and_never_at_the_node_itself() {
        let refused =
            |address: &str, networks: Option<&[IpNet]>| check_place(address.parse().unwrap(), networks).is_err();
        for inward in ["127.0.0.1", "::1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(refused(inward, None), "{inward}");
        }
        assert!(!refused("10.20.0.5", None) && !refused("2001:db8::5", None));
        let management = ["10.20.0.0/16".parse().unwrap()];
        assert!(!refused("10.20.0.5", Some(&management)));
        assert!(refused("10.21.0.5", Some(&management)) && refused("2001:db8::5", Some(&management)));
    }

    #[tokio::test]
    async fn a_damaged_file_is_no_reason_not_to_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{").unwrap();
        let bmcs = Bmcs::open(dir.path(), RackId::fresh(), None).unwrap();
        assert_eq!(bmcs.revision(), 0);
    }
}
