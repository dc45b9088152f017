//! Boot override (DSP0268 ComputerSystem: `Boot`).
//!
//! Invariant: an override counts when the BMC shows it: several answer 200 and change nothing.

use serde_json::{Map, Value, json};

use crate::{
    bmc::BmcError,
    told::{Boot, BootOverride, BootSource, text},
};

use super::{Redfish, fault, resource::Node};

/// How often an override is read back.
const READS: u32 = 3;

/// What a system's `Boot` says.
pub fn boot(boot: Node<'_>) -> Boot {
    let target = boot.word("BootSourceOverrideTarget");
    let enabled = boot.word("BootSourceOverrideEnabled");
    let uefi = match boot.word("BootSourceOverrideMode") {
        Some("UEFI") => Some(true),
        Some("Legacy") => Some(false),
        _ => None,
    };
    let source = target.filter(|_| enabled != Some("Disabled")).and_then(|target| match target {
        "Pxe" => Some(BootSource::Network),
        "UefiHttp" => Some(BootSource::Http(boot.text("HttpBootUri").filter(|uri| uri.contains("://")))),
        "Hdd" => Some(BootSource::Disk),
        "Cd" => Some(BootSource::Cd),
        "BiosSetup" => Some(BootSource::Setup),
        _ => None,
    });
    let doubt = match (target, enabled) {
        (None, None) => Some("it shows no boot override".to_owned()),
        (_, Some("Disabled")) | (None | Some("None"), _) => None,
        (Some(target), _) if source.is_none() => Some(format!("it boots from {}", text(target).unwrap_or_default())),
        (Some(_), None) => Some("it does not say whether the override is in force".to_owned()),
        _ => None,
    };
    Boot { set: BootOverride { source, is_lasting: enabled == Some("Continuous"), uefi }, doubt }
}

/// The change that sets an override, if the BMC allows it.
pub fn change(boot: Node<'_>, wanted: &BootOverride) -> Result<Value, BmcError> {
    let mut change = Map::new();
    let (target, enabled) = match (target(wanted), wanted.is_lasting) {
        ("None", _) => ("None", "Disabled"),
        (target, true) => (target, "Continuous"),
        (target, false) => (target, "Once"),
    };
    let refuses = |name: &str, value: &str| {
        let allowed = boot.words(&format!("{name}@Redfish.AllowableValues"));
        !allowed.is_empty() && !allowed.contains(&value)
    };
    if target != "None" && refuses("BootSourceOverrideTarget", target) {
        return Err(fault::unsupported(format!("it cannot boot from {target}")));
    }
    // Those that do not say what they take answer well, and do nothing.
    if target == "UefiHttp" && !boot.words("BootSourceOverrideTarget@Redfish.AllowableValues").contains(&target) {
        return Err(fault::unsupported("it does not say that it boots by HTTP".to_owned()));
    }
    if refuses("BootSourceOverrideEnabled", enabled) && enabled == "Continuous" {
        return Err(fault::unsupported("its override is for one start only"));
    }
    change.insert("BootSourceOverrideTarget".to_owned(), target.into());
    change.insert("BootSourceOverrideEnabled".to_owned(), enabled.into());
    if let Some(uefi) = wanted.uefi {
        change.insert("BootSourceOverrideMode".to_owned(), if uefi { "UEFI" } else { "Legacy" }.into());
    }
    if let Some(BootSource::Http(Some(uri))) = &wanted.source {
        change.insert("HttpBootUri".to_owned(), uri.clone().into());
    }
    Ok(json!({ "Boot": change }))
}

fn target(wanted: &BootOverride) -> &'static str {
    match wanted.source {
        None => "None",
        Some(BootSource::Network) => "Pxe",
        Some(BootSource::Http(_)) => "UefiHttp",
        Some(BootSource::Disk) => "Hdd",
        Some(BootSource::Cd) => "Cd",
        Some(BootSource::Setup) => "BiosSetup",
    }
}

/// Whether what is shown is what was wanted. For how long it holds is not compared: services that
/// only know one kind of override show that kind.
pub fn is_as_wanted(shown: &BootOverride, wanted: &BootOverride) -> bool {
    let source = match (&shown.source, &wanted.source) {
        (Some(BootSource::Http(_)), Some(BootSource::Http(None))) => true,
        (shown, wanted) => shown == wanted,
    };
    source && (wanted.uefi.is_none() || shown.uefi.is_none() || shown.uefi == wanted.uefi)
}

impl Redfish {
    pub(super) async fn read_boot(&self) -> Result<Boot, BmcError> {
        let system = self.system().await?;
        Ok(boot(system.node().at("Boot")))
    }

    pub(super) async fn override_boot(&self, wanted: &BootOverride) -> Result<(), BmcError> {
        let system = self.system().await?;
        let change = change(system.node().at("Boot"), wanted)?;
        match self.http.patch(&system, change.clone()).await {
            Err(BmcError::Refused(_)) if wanted.source.is_none() => {
                // Some do not know the target None, and some do not take both at once.
                self.http.patch(&system, json!({"Boot": {"BootSourceOverrideEnabled": "Disabled"}})).await?;
            }
            Err(unsupported @ BmcError::Unsupported(_)) => {
                let settings = system.node().at("@Redfish.Settings").link("SettingsObject").ok_or(unsupported)?;
                let settings = self.http.get(&settings).await?;
                return self.http.patch(&settings, change).await.map(drop);
            }
            answer => drop(answer?),
        }
        let mut shown = self.read_boot().await?;
        for _ in 1..READS {
            if is_as_wanted(&shown.set, wanted) {
                break;
            }
            tokio::time::sleep(self.http.bounds().settle).await;
            shown = self.read_boot().await?;
        }
        if is_as_wanted(&shown.set, wanted) {
            return Ok(());
        }
        let source = shown.doubt.unwrap_or_else(|| format!("it shows {:?}", shown.set.source));
        Err(fault::refused(format!("the boot override was taken and did nothing: {source}")))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::{super::resource::tests::any_json, *};

    fn check(shown: Value, expected: Expect) {
        let Boot { set, doubt } = boot(Node(Some(&shown)));
        expected.assert_eq(&format!("{:?} lasting={} uefi={:?} doubt={doubt:?}", set.source, set.is_lasting, set.uefi));
    }

    #[test]
    fn overrides_are_read() {
        check(
            json!({"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe", "BootSourceOverrideMode": "UEFI"}),
            expect!["Some(Network) lasting=false uefi=Some(true) doubt=None"],
        );
        check(
            json!({"BootSourceOverrideEnabled": "Disabled", "BootSourceOverrideTarget": "None"}),
            expect!["None lasting=false uefi=None doubt=None"],
        );
        check(
            json!({"BootSourceOverrideEnabled": "Continuous", "BootSourceOverrideTarget": "UefiHttp", "HttpBootUri": "http://10.0.0.1/boot.efi"}),
            expect![[r#"Some(Http(Some("http://10.0.0.1/boot.efi"))) lasting=true uefi=None doubt=None"#]],
        );
        check(
            json!({"BootSourceOverrideEnabled": "Continuous", "BootSourceOverrideTarget": "Usb"}),
            expect![[r#"None lasting=true uefi=None doubt=Some("it boots from Usb")"#]],
        );
        check(
            json!({"BootSourceOverrideTarget": "Hdd", "BootSourceOverrideEnabled": null}),
            expect![[
                r#"Some(Disk) lasting=false uefi=None doubt=Some("it does not say whether the override is in force")"#
            ]],
        );
        check(Value::Null, expect![[r#"None lasting=false uefi=None doubt=Some("it shows no boot override")"#]]);
    }

    #[test]
    fn a_source_that_is_not_allowed_is_not_asked_for() {
        let shown = json!({"BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "Hdd"]});
        let wanted = |source| BootOverride { source: Some(source), is_lasting: false, uefi: None };
        assert!(matches!(change(Node(Some(&shown)), &wanted(BootSource::Http(None))), Err(BmcError::Unsupported(_))));
        expect![[r#"{"Boot":{"BootSourceOverrideEnabled":"Once","BootSourceOverrideTarget":"Pxe"}}"#]]
            .assert_eq(&change(Node(Some(&shown)), &wanted(BootSource::Network)).unwrap().to_string());
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            boot(Node(Some(&json)));
        }
    }
}
