//! Redfish, judged by DMTF's own validators: of the schemas (DSP8010), by the files that the crate
//! `nv-redfish-schema` carries, and of the protocol (DSP0266).

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use rackhand_bmc_sim::Personality;

use crate::bench::{Subject, run, subject};

/// What the protocol's validator may hold against it, by its assertion, and why.
const EXCEPTIONS: [(&str, &str); 0] = [];

const ADVICE: &str = "target/python is made from tests/requirements.txt by the gate (`cargo xtask test`)";

fn validator(program: &str, bmc: &Subject) -> Command {
    let python = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/python/bin"));
    let mut command = Command::new(python.join(program));
    // A bundle of authorities named there would be asked about each certificate, whatever is said here.
    for name in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        command.env_remove(name);
    }
    let address = format!("https://{}", bmc.running.redfish);
    command.args(["--user", &bmc.user, "--password", &bmc.password, "--rhost", &address]);
    command
}

/// The only file in a directory, or below one that is alone there, whose name ends so.
fn file(directory: &std::path::Path, end: &str) -> String {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            return file(&path, end);
        }
        found.extend(path.to_string_lossy().ends_with(end).then(|| std::fs::read_to_string(&path).unwrap()));
    }
    assert_eq!(found.len(), 1, "{}", directory.display());
    found.remove(0)
}

#[tokio::test]
async fn every_resource_is_as_its_schema_has_it() {
    // It has both generations of resources, which the other presets have one of each.
    let bmc = subject(Personality::generic(40)).await;
    bmc.running.bmc.inject("Inlet Temp", 43.0);
    let directory = tempfile::tempdir().unwrap();
    let schemas = directory.path().join("schemas");
    std::fs::create_dir(&schemas).unwrap();
    let files = nv_redfish_schema::glob_redfish_xml();
    assert!(files.len() > 200, "{files:?}");
    for schema in files.iter().map(PathBuf::from) {
        std::os::unix::fs::symlink(&schema, schemas.join(schema.file_name().unwrap())).unwrap();
    }
    let mut command = validator("rf_service_validator", &bmc);
    let logs = directory.path().join("logs");
    command.args(["--authtype", "Session", "--skipschema"]);
    command.arg("--schema_directory").arg(&schemas).arg("--logdir").arg(&logs).current_dir(directory.path());
    let said = run(command, ADVICE).await;
    let log = file(&logs, ".log");
    let failures: BTreeSet<_> = log.lines().filter_map(|line| line.split_once(" - FAIL - ")).map(|it| it.1).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let said = said.well();
    // Its walk came to where the tree ends.
    assert!(said.contains("/redfish/v1/UpdateService/FirmwareInventory/BIOS"), "{said}");
    let passed = log.matches(" - PASS - ").count();
    assert!(passed > 1000, "{passed} properties were looked at");
}

#[tokio::test]
async fn the_protocol_is_spoken_as_its_specification_has_it() {
    let bmc = subject(Personality::generic(41)).await;
    let directory = tempfile::tempdir().unwrap();
    let reports = directory.path().join("reports");
    let mut command = validator("rf_protocol_validator", &bmc);
    command.args(["--no-cert-check", "--avoid-http-redirect", "--report-type", "tsv", "--report-dir"]).arg(&reports);
    command.current_dir(directory.path());
    let said = run(command, ADVICE).await;
    let report = file(&reports, ".tsv");
    let rows = || report.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>()).filter(|row| row.len() > 5);
    let failed = rows().filter(|row| row[4] == "FAIL");
    let failed: Vec<_> = failed.filter(|row| EXCEPTIONS.iter().all(|(known, _)| *known != row[0])).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{}", said.text);
    let passed = rows().filter(|row| row[4] == "PASS").count();
    assert!(passed > 250, "{passed} assertions passed\n{}", said.text);
}
