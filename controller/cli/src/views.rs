//! What the controller answers, as far as this tool shows it. Fields it does not know are
//! ignored: a newer controller may say more.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::hardware::MachineHardware;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) rack: String,
    pub(crate) lifecycle: String,
    pub(crate) power: Option<String>,
    pub(crate) installer: bool,
    pub(crate) address: String,
    pub(crate) macs: Vec<String>,
    pub(crate) stage: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) image_version: Option<u32>,
    pub(crate) alert: Option<String>,
    pub(crate) held: Option<Hold>,
    pub(crate) rescue: Option<Login>,
    #[serde(default)]
    pub(crate) health: Option<String>,
    #[serde(default)]
    pub(crate) not_inspected: Option<String>,
    pub(crate) run: Option<String>,
    #[serde(default)]
    pub(crate) verbs: Vec<String>,
    pub(crate) inventory: Option<Value>,
    #[serde(default)]
    pub(crate) changes: Vec<PartChange>,
    /// What is in its slots; put beside it by whoever asked for both.
    #[serde(default)]
    pub(crate) slots: Option<MachineHardware>,
    /// The run in progress on it; likewise.
    #[serde(default)]
    pub(crate) in_progress: Option<Run>,
}

/// Why a machine is out of service.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Hold {
    pub(crate) reason: String,
    pub(crate) since: Timestamp,
    pub(crate) until: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) host_key: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PartChange {
    pub(crate) part: String,
    pub(crate) was: Option<String>,
    pub(crate) is: Option<String>,
}

/// What became of a disk in a release.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Erasure {
    pub(crate) id: String,
    pub(crate) machine_name: String,
    pub(crate) disk: String,
    pub(crate) serial: String,
    pub(crate) method: Option<String>,
    pub(crate) class: String,
    pub(crate) reason: Option<String>,
    pub(crate) ended: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TestResult {
    pub(crate) test: String,
    pub(crate) outcome: String,
    pub(crate) reason: Option<String>,
    pub(crate) part: String,
    pub(crate) started: Timestamp,
    pub(crate) milliseconds: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Run {
    pub(crate) id: String,
    pub(crate) machine: String,
    pub(crate) machine_name: String,
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) step: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) waiting_for: Option<String>,
    #[serde(default)]
    pub(crate) waiting_since: Option<Timestamp>,
    pub(crate) waiting_until: Option<Timestamp>,
    #[serde(default)]
    pub(crate) way: Option<String>,
    pub(crate) cause: Option<String>,
    pub(crate) detail: Option<String>,
    pub(crate) created: Timestamp,
    pub(crate) ended: Option<Timestamp>,
}

impl Run {
    pub(crate) fn over(&self) -> bool {
        self.status != "running"
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RunLogs {
    pub(crate) run: Run,
    pub(crate) steps: Vec<RunStep>,
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RunStep {
    pub(crate) step: String,
    pub(crate) attempt: u32,
    pub(crate) undoing: bool,
    pub(crate) began: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) outcome: String,
    pub(crate) cause: Option<String>,
    pub(crate) detail: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: u64,
    pub(crate) at: Timestamp,
    pub(crate) run: Option<String>,
    pub(crate) kind: String,
    pub(crate) text: String,
    pub(crate) progress: Option<Progress>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Progress {
    #[serde(default)]
    pub(crate) doing: String,
    pub(crate) done: u64,
    pub(crate) total: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) version: u32,
    pub(crate) os: Option<String>,
    #[serde(default)]
    pub(crate) deprecated: bool,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) findings: Option<Vec<Finding>>,
    pub(crate) state: String,
    pub(crate) settings: String,
    pub(crate) created: Timestamp,
    pub(crate) progress: Option<Progress>,
    pub(crate) content: Option<Content>,
    pub(crate) failure: Option<Failure>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Finding {
    pub(crate) severity: String,
    pub(crate) subject: String,
    pub(crate) found: String,
    #[serde(default)]
    pub(crate) advice: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) stored: u64,
    pub(crate) sector: u32,
    pub(crate) firmware: Vec<String>,
    pub(crate) sha256: String,
    pub(crate) manifest: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Failure {
    pub(crate) cause: String,
    pub(crate) detail: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Rack {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) network: Network,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Network {
    pub(crate) node: String,
    pub(crate) delegated: [String; 2],
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) rack: String,
    pub(crate) connected: bool,
    pub(crate) version: Option<String>,
    pub(crate) seen: Option<Timestamp>,
    pub(crate) revoked: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Code {
    pub(crate) expires: Timestamp,
    pub(crate) command: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Replacement {
    pub(crate) rack: String,
    pub(crate) agent: Option<String>,
    pub(crate) unknown_commands: usize,
    pub(crate) expires: Timestamp,
}
