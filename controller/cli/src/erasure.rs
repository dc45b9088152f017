//! `rackhand erasure`: certificates of what became of disks, and whether they are true.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use rackhand_common::erasure::SignedCertificate;
use reqwest::Method;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use crate::{
    client::{Client, given_only},
    context::{Context, Overrides},
    output::{Output, print, read},
    show::{Table, or_dash, second, table},
    views::Erasure,
};

#[derive(Subcommand)]
pub(crate) enum ErasureCommand {
    /// List what became of disks, the newest first; also of machines that are forgotten
    #[command(after_help = "  rackhand erasure list --serial S4EVNX0N123456
  rackhand machine erasures web-1")]
    List {
        /// Only of the drive with this serial number
        #[arg(long)]
        serial: Option<String>,
        /// Only of the machine with this id
        #[arg(long, value_name = "ID")]
        machine: Option<String>,
    },
    /// Show a certificate with its signature, as a file to keep
    #[command(after_help = "  rackhand erasure show 01931b1e-0000-7000-8000-000000000000 > drive.json")]
    Show {
        /// Id
        erasure: String,
    },
    /// Print a certificate on paper
    #[command(after_help = "  rackhand erasure print 01931b1e-0000-7000-8000-000000000000 | lp")]
    Print {
        /// Id
        erasure: String,
    },
    /// Verify a certificate that was kept as a file; asks no controller
    #[command(after_help = "  rackhand erasure verify drive.json --root ca.pem

ca.pem is the file of the controller's roots, from its pki directory. Without --root the certificates
are believed that you are logged in with (login --ca).")]
    Verify {
        /// The file
        file: PathBuf,
        /// File with the roots to believe
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
}

pub(crate) async fn run(client: &Client, command: ErasureCommand, output: Output) -> anyhow::Result<String> {
    match command {
        ErasureCommand::List { serial, machine } => {
            let query = given_only([("serial", serial), ("machine", machine)]);
            let items = client.list_with("/v1/erasures", query).await?;
            print(output, Value::Array(items), |items: Vec<Erasure>| listed(&items))
        }
        ErasureCommand::Show { erasure } => {
            let value = certificate(client, &erasure).await?;
            Ok(match output {
                Output::Table | Output::Wide => serde_json::to_string_pretty(&value)?,
                other => print(other, value, |value: Value| value.to_string())?,
            })
        }
        ErasureCommand::Print { erasure } => {
            let signed: SignedCertificate = serde_json::from_value(certificate(client, &erasure).await?)?;
            Ok(signed.unverified()?.printed().trim_end().to_owned())
        }
        ErasureCommand::Verify { file, root } => verify(&file, root.as_deref(), Overrides::default()),
    }
}

async fn certificate(client: &Client, erasure: &str) -> anyhow::Result<Value> {
    client.ask(Method::GET, &format!("/v1/erasures/{erasure}"), None).await
}

/// What was done to each disk.
pub(crate) fn listed(items: &[Erasure]) -> Table {
    let row = |erasure: &Erasure| {
        let result = match &erasure.reason {
            None => format!("{} ({})", or_dash(erasure.method.as_deref()), erasure.class),
            Some(reason) => format!("NOT: {reason}"),
        };
        vec![
            erasure.id.clone(),
            erasure.machine_name.clone(),
            erasure.disk.clone(),
            or_dash(Some(erasure.serial.as_str()).filter(|serial| !serial.is_empty())),
            second(erasure.ended),
            result,
        ]
    };
    table(&["ID", "MACHINE", "DISK", "SERIAL", "ENDED", "ERASED BY"], items.iter().map(row))
        .or_say("no disk was erased yet")
}

/// Verifies a certificate in a file against roots in another, or those of the context.
pub(crate) fn verify(file: &Path, root: Option<&Path>, overrides: Overrides) -> anyhow::Result<String> {
    let roots = match root {
        Some(root) => read(root)?,
        None => Context::resolve(overrides)
            .ok()
            .and_then(|context| context.ca)
            .context("there is no root to verify it with: say --root with the controller's ca.pem")?,
    };
    let roots: Vec<_> = CertificateDer::pem_slice_iter(roots.as_bytes())
        .collect::<Result<_, _>>()
        .context("the file of roots is not PEM")?;
    ensure!(!roots.is_empty(), "the file of roots has no certificate in it");
    let signed = SignedCertificate::parse(read(file)?.as_bytes());
    let said = signed.and_then(|signed| signed.verify(&roots));
    let said = said.with_context(|| format!("{} is not to be believed", file.display()))?;
    Ok(format!("{}The signature is good: this is what the controller signed.", said.printed()))
}

#[cfg(test)]
mod tests {
    use rackhand_common::{
        erasure::{Certificate, DriveErasure, FORMAT, SIGNER},
        id::{MachineId, RunId},
    };
    use rcgen::{CertificateParams, IsCa, Issuer, KeyPair, SanType, SigningKey as _};

    use super::*;

    #[test]
    fn a_file_is_verified_without_a_controller_and_told_apart_from_a_changed_one() {
        let dir = tempfile::tempdir().unwrap();
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.distinguished_name.push(rcgen::DnType::CommonName, "root");
        root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
        leaf.subject_alt_names.push(SanType::URI(SIGNER.try_into().unwrap()));
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&root, &root_key)).unwrap().pem();
        let certificate = Certificate {
            format: FORMAT.into(),
            erasure: uuid::Uuid::from_u128(1),
            run: RunId(uuid::Uuid::from_u128(2)),
            machine: MachineId(uuid::Uuid::from_u128(3)),
            machine_name: "web-1".into(),
            rack_name: "lab".into(),
            signed: "2026-12-01T10:00:00Z".parse().unwrap(),
            drive: DriveErasure { model: "with\u{1b}[2Jcolours".into(), ..DriveErasure::example("d1") },
        };
        let chain = vec![leaf, root_pem.clone()];
        let signed = SignedCertificate::sign(&certificate, chain, |bytes| key.sign(bytes).unwrap());
        let (file, ca) = (dir.path().join("drive.json"), dir.path().join("ca.pem"));
        let text = serde_json::to_string_pretty(&signed).unwrap();
        std::fs::write(&file, &text).unwrap();
        std::fs::write(&ca, root_pem).unwrap();
        let verified = |file: &Path| verify(file, Some(&ca), Overrides::default());
        expect_test::expect![[r#"
            CERTIFICATE OF ERASURE

            Certificate    00000000-0000-0000-0000-000000000001
            Signed         2026-12-01T10:00:00Z
            Machine        web-1 (00000000-0000-0000-0000-000000000003)
            Rack           lab
            Run            00000000-0000-0000-0000-000000000002

            Model          with?[2Jcolours
            Serial number  S1
            WWN            none told
            Capacity       1073741824 bytes, sectors of 512
            Interface      no administrative commands

            Begun          1970-01-01T00:00:00Z
            Ended          1970-01-01T00:00:00Z
            Method         overwriting with zeros: proven
            Result         erased, NIST SP 800-88 clear
            Samples        1 places, 1048576 bytes
            Shown by       a pattern written before is gone from every sample
            Shown by       every sample reads zeros

            The signature is good: this is what the controller signed."#]]
        .assert_eq(&verified(&file).unwrap());
        let check = |text: &str, wanted: &str| {
            std::fs::write(&file, text).unwrap();
            let error = format!("{:#}", verified(&file).unwrap_err());
            assert!(error.ends_with(wanted), "{error}");
        };
        check(
            &text.replacen("web-1", "web-2", 1),
            "the signature does not fit: what it says was changed after it was signed",
        );
        check(&text.replacen("rackhand-erasure/1", "x", 1), "its format is \"x\", not \"rackhand-erasure/1\"");
        check("{}", "missing field `certificate` at line 1 column 2");
    }
}
