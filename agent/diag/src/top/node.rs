//! What the agent's own answer says of the node, judged as `rackhand-agent doctor` judges it.

use std::time::Duration;

use jiff::Timestamp;
use rackhand_common::{
    finding::{Findings, Severity},
    wire::NodeView,
};

use crate::show;

/// A node's certificate lasts 48 hours and is made anew at half.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// How long boot may be silent: it asks for the intent more often.
const BOOT: u64 = 60;

fn findings(node: &NodeView, now: Timestamp) -> Findings {
    let mut findings = Findings::default();
    let advice = "systemctl status rackhand-boot; journalctl -u rackhand-boot";
    match node.boot_heard {
        Some(seconds) if seconds <= BOOT => findings.good("boot", "the boot process is heard"),
        Some(seconds) => {
            findings.error("boot", format_args!("not heard for {}: no machine may boot", show::span(seconds)), advice);
        }
        None => findings.error("boot", "never heard since the agent started: no machine may boot", advice),
    }
    findings.certificate(
        "the agent's",
        now,
        node.certificate_until,
        RENEWED,
        "see that the controller can be reached; when it has ended, enrol the node again",
    );
    if let Some((used, total)) = node.health.as_ref().map(|health| health.disk) {
        findings.space("the state directory", total.saturating_sub(used), total);
    }
    findings
}

/// In one line, and how bad it is.
pub(crate) fn in_short(node: &NodeView, now: Timestamp) -> (Severity, String) {
    let findings = findings(node, now);
    let worst =
        findings.0.iter().filter(|finding| finding.severity > Severity::Good).max_by_key(|finding| finding.severity);
    let uplink = &node.uplink;
    match worst {
        Some(finding) => {
            let others = findings.0.iter().filter(|finding| finding.severity > Severity::Good).count() - 1;
            let others = if others == 0 { String::new() } else { format!(" (and {others} more: n)") };
            let word = if finding.severity == Severity::Error { "ERROR" } else { "warning" };
            (finding.severity, format!("node {word}: {}: {}{others}", finding.subject, finding.found))
        }
        None => (Severity::Good, format!("node ok; controller: {uplink}")),
    }
}

/// All of it.
pub(crate) fn in_full(node: &NodeView, now: Timestamp) -> String {
    format!("{}\n{}", show::status(node, now), findings(node, now))
}
