//! Faults, as peers see them.

use jiff::SignedDuration;
use rackhand_bmc_sim::{Faults, Personality, Rotation, ToldUuid};

use crate::bench::{subject, until};

#[tokio::test]
async fn what_is_wrong_shows_and_ends() {
    let bmc = subject(Personality::generic(20)).await;
    let set = |faults| bmc.running.bmc.set_faults(faults);
    set(Faults { busy: true, ..Faults::default() });
    assert_eq!(bmc.curl("GET", "/redfish/v1/Systems", None).await.0, 503);
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
    set(Faults { no_sessions: true, ..Faults::default() });
    assert!(!bmc.ipmitool(&["mc", "info"]).await.is_content);
    let login = format!(r#"{{"UserName": {:?}, "Password": {:?}}}"#, bmc.user, bmc.password);
    assert_eq!(bmc.curl_as(None, "POST", "/redfish/v1/SessionService/Sessions", Some(&login)).await.0, 503);
    set(Faults { dropping: 7, ..Faults::default() });
    bmc.ipmitool(&["mc", "info"]).await.well();
    set(Faults::default());
    bmc.ipmitool(&["mc", "info"]).await.well();
    assert_eq!(bmc.curl_as(None, "POST", "/redfish/v1/SessionService/Sessions", Some(&login)).await.0, 201);
}

#[tokio::test]
async fn a_lying_bmc_says_yes_and_does_nothing() {
    let bmc = subject(Personality::generic(21)).await;
    bmc.running.bmc.set_faults(Faults { lying: true, ..Faults::default() });
    bmc.ipmitool(&["chassis", "power", "on"]).await.well();
    let reset = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
    assert_eq!(bmc.curl("POST", reset, Some(r#"{"ResetType": "On"}"#)).await.0, 204);
    assert_eq!(bmc.machine.acts(), []);
}

#[tokio::test]
async fn a_hidden_override_is_used_and_not_shown() {
    let bmc = subject(Personality::generic(22)).await;
    bmc.running.bmc.set_faults(Faults { override_hidden: true, uuid: ToldUuid::Zero, ..Faults::default() });
    let boot = r#"{"Boot": {"BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once"}}"#;
    assert_eq!(bmc.curl("PATCH", "/redfish/v1/Systems/1", Some(boot)).await.0, 200);
    let system = bmc.get("/redfish/v1/Systems/1").await;
    assert_eq!(system["Boot"]["BootSourceOverrideTarget"], "None");
    assert_eq!(system["UUID"], "00000000-0000-0000-0000-000000000000");
    assert_eq!(bmc.machine.acts().len(), 1);
}

#[tokio::test]
async fn a_rotation_done_but_not_said_lets_in_with_the_new_password() {
    let mut bmc = subject(Personality::generic(23)).await;
    bmc.running.bmc.set_faults(Faults { password: Rotation::DoneNotSaid, ..Faults::default() });
    assert!(!bmc.ipmitool(&["user", "set", "password", "2", "another", "16"]).await.is_content);
    bmc.password = "another".into();
    bmc.ipmitool(&["mc", "info"]).await.well();
}

#[tokio::test]
async fn a_restart_is_silent_and_loses_sessions() {
    let bmc = subject(Personality::generic(24)).await;
    bmc.running.bmc.restart(SignedDuration::from_millis(500));
    until("it answers again", async || bmc.ipmitool(&["mc", "info"]).await.is_content).await;
    until("so does Redfish", async || {
        let mut command = std::process::Command::new("curl");
        command.args(["-sk", "--fail", &format!("https://{}/redfish/v1/", bmc.running.redfish)]);
        crate::bench::run(command, "apt-get install curl").await.is_content
    })
    .await;
}

#[tokio::test]
async fn malformed_members_and_dangling_links_are_there() {
    let bmc = subject(Personality::generic(25)).await;
    bmc.running.bmc.set_faults(Faults { dangling_links: true, ..Faults::default() });
    let systems = bmc.get("/redfish/v1/Systems").await;
    assert_eq!(systems["Members"].as_array().unwrap().len(), 2);
    assert_eq!(bmc.curl("GET", "/redfish/v1/Systems/Gone", None).await.0, 404);
    bmc.running.bmc.set_faults(Faults { malformed_members: true, no_actions: true, ..Faults::default() });
    let system = bmc.get("/redfish/v1/Systems/1").await;
    assert!(system["PowerState"].is_array(), "{system}");
    assert!(system["Actions"].is_null());
}
