//! The hardware's event log (DSP0268 LogService, LogEntry).
//!
//! Invariant: of several logs, the one of the hardware is read, and the same one each time.

use jiff::Timestamp;

use crate::{
    bmc::BmcError,
    told::{Log, LogEntry, MAX_ITEMS, Severity, text},
};

use super::{
    Redfish, fault,
    http::Payload,
    resource::{Node, Resource, severity},
    tree::action,
};

/// The first second that a BMC's clock may show when it has been set: 2000-01-01.
const FIRST_SECOND: i64 = 946_684_800;

/// How fit a log service is to be the hardware's log; less is fitter, `None` is not fit.
pub fn rank(service: &Resource) -> Option<u8> {
    let node = service.node();
    let name = node.word("Id").unwrap_or(service.link.name()).to_ascii_lowercase();
    let is_on = node.flag("ServiceEnabled") != Some(false);
    let rank = match name.as_str() {
        "sel" => 0,
        "iml" => 1,
        "platformlog" | "standardlog" => 2,
        "eventlog" => 3,
        "log1" | "log" => 4,
        _ if node.word("LogEntryType") == Some("SEL") => 5,
        name if name.contains("sel") || name.contains("event") => 6,
        name if ["lclog", "audit", "dump", "post", "crash", "journal", "host", "security", "fault"]
            .iter()
            .any(|word| name.contains(word)) =>
        {
            return None;
        }
        _ => 7,
    };
    is_on.then_some(rank)
}

/// One entry.
pub fn entry(node: Node<'_>) -> Option<LogEntry> {
    let code = node.text("EntryCode").unwrap_or_default().to_ascii_lowercase();
    let repaired = node.at("Oem").at("Hpe").flag("Repaired");
    let severity: Option<Severity> = node.word("Severity").and_then(severity);
    Some(LogEntry {
        id: node.first_text(&["Id", "RecordId"]).or_else(|| node.count("RecordId").map(|id| id.to_string()))?,
        at: node.word("Created").and_then(moment),
        severity,
        subject: node
            .text("SensorType")
            .or_else(|| node.at("Links").link("OriginOfCondition").and_then(|link| text(link.as_str()))),
        message: node.first_text(&["Message", "MessageId", "Name"])?,
        is_over: node.flag("Resolved") == Some(true) || repaired == Some(true) || code.contains("deassert"),
    })
}

/// A moment as BMCs write it: RFC 3339, or without an offset, which is then taken for UTC.
fn moment(word: &str) -> Option<Timestamp> {
    let word = word.trim();
    let moment = word.parse::<Timestamp>().or_else(|_| format!("{word}Z").parse()).ok();
    moment.filter(|moment| moment.as_second() >= FIRST_SECOND)
}

/// Oldest first: by the number that each has, if each has one, because clocks are set back; by
/// time if each has one.
pub fn in_order(mut entries: Vec<LogEntry>) -> Vec<LogEntry> {
    let number = |entry: &LogEntry| entry.id.parse::<u64>().ok();
    if entries.iter().all(|entry| number(entry).is_some()) {
        entries.sort_by_key(number);
    } else if entries.iter().all(|entry| entry.at.is_some()) {
        entries.sort_by_key(|entry| entry.at);
    }
    entries
}

impl Redfish {
    /// The log service of the hardware.
    async fn log_service(&self) -> Result<Resource, BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let owners = std::iter::once(&service.system).chain(&service.managers).chain(&service.chassis);
        let mut fittest: Option<(u8, Resource)> = None;
        for owner in owners {
            let Some(owner) = walk.read(owner).await? else { continue };
            for found in walk.members_at(owner.node(), "LogServices").await? {
                let Some(rank) = rank(&found) else { continue };
                if fittest.as_ref().is_none_or(|(best, _)| rank < *best) {
                    fittest = Some((rank, found));
                }
            }
            if matches!(fittest, Some((0, _))) {
                break;
            }
        }
        fittest.map(|(_, found)| found).ok_or_else(|| fault::unsupported("it has no log"))
    }

    pub(super) async fn read_log(&self) -> Result<Log, BmcError> {
        let log = self.log_service().await?;
        self.entries(&log).await
    }

    async fn entries(&self, log: &Resource) -> Result<Log, BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let collection = log.node().link("Entries").unwrap_or_else(|| log.link.below("Entries"));
        let mut entries = Vec::new();
        for found in walk.members(&collection).await? {
            match entry(found.node()) {
                Some(entry) => entries.push(entry),
                None => walk.skip(&found.link, "an entry without an id or a message"),
            }
        }
        let room = log.node().count("MaxNumberOfRecords").filter(|room| *room > 0);
        let has_overflowed = entries.len() >= MAX_ITEMS || room.is_some_and(|room| entries.len() as u64 >= room);
        Ok(Log { entries: in_order(entries), has_overflowed, skipped: walk.skipped })
    }

    pub(super) async fn empty_log(&self, last: Option<&str>) -> Result<(), BmcError> {
        let log = self.log_service().await?;
        // Redfish has no reservation: an entry that comes between this look and the clearing is
        // lost, and the look keeps that time short.
        let entries = self.entries(&log).await?.entries;
        let newest = entries.last().map(|entry| entry.id.as_str());
        if last.is_some() && newest != last {
            let newest = newest.unwrap_or("none");
            return Err(fault::refused(format!("the log has changed: its newest entry is {newest}")));
        }
        let payload = Payload::Json(serde_json::json!({}));
        self.http.post(&action(&log, "LogService.ClearLog"), payload).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    use super::{
        super::resource::tests::{any_json, resource},
        *,
    };

    #[test]
    fn entries_of_several_vendors_are_read() {
        let told = json!({"Members": [
            {"Id": "2", "Created": "2024-03-05T10:11:12-06:00", "Severity": "Critical", "Message": "The system inlet temperature is greater than the upper critical threshold.",
             "EntryCode": "Assert", "SensorType": "Temperature", "EntryType": "SEL"},
            {"Id": "1", "Created": "1970-01-01T00:00:12Z", "Severity": "OK", "Message": "Log cleared.", "EntryCode": [{"Member": "Assert"}]},
            {"Id": "10", "Created": "2024-03-05T10:20:00", "Severity": "Warning", "Message": "Fan", "Oem": {"Hpe": {"Repaired": true}},
             "Links": {"OriginOfCondition": {"@odata.id": "/redfish/v1/Chassis/1/Thermal#/Fans/0"}}},
            {"Id": "3", "Message": null, "MessageId": null}, {"Message": "no id"}, null, 3
        ]});
        let entries = in_order(Node(Some(&told)).items("Members").filter_map(entry).collect());
        expect![[r#"
            LogEntry { id: "1", at: None, severity: Some(Ok), subject: None, message: "Log cleared.", is_over: false }
            LogEntry { id: "2", at: Some(2024-03-05T16:11:12Z), severity: Some(Critical), subject: Some("Temperature"), message: "The system inlet temperature is greater than the upper critical threshold.", is_over: false }
            LogEntry { id: "10", at: Some(2024-03-05T10:20:00Z), severity: Some(Warning), subject: Some("/redfish/v1/Chassis/1/Thermal"), message: "Fan", is_over: true }
        "#]].assert_eq(&entries.iter().map(|entry| format!("{entry:?}\n")).collect::<String>());
    }

    #[test]
    fn the_log_of_the_hardware_is_preferred() {
        let rank = |id: &str| rank(&resource("/redfish/v1/X", json!({ "Id": id })));
        let mut names = vec!["Lclog", "Journal", "EventLog", "Sel", "IML", "Log1", "FaultList", "Whatever"];
        names.retain(|name| rank(name).is_some());
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["Sel", "IML", "EventLog", "Log1", "Whatever"]);
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            entry(Node(Some(&json)));
        }
    }
}
