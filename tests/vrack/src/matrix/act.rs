//! What is done beside the machines, by operators and by the agent itself: each arrives whatever
//! strikes meanwhile, asked for again if need be, and leaves nothing half.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use rackhand_common::pki::Role;
use rackhand_controller::authority::{AGENT_TTL, Authority};
use rackhand_tests::image;
use serde_json::{Value, json};

use super::rig::{CHUNKS, INSIST, LOOK, Rig};
use crate::{
    network::Place,
    operator::items,
    run::{outcome, output},
    services::Service,
};

/// An act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// A node enrols for a rack of its own.
    Enrol,
    /// The agent renews a certificate that has lived half of its life.
    Renew,
    /// An image is imported.
    Import,
    /// The controller's data are backed up while it runs.
    Backup,
    /// The key of the secrets is replaced, in a copy of the controller's data.
    Rotate,
}

/// How often something may have to be asked for again after one fault.
const TRIES: usize = 4;

impl Act {
    pub(crate) const ALL: [Self; 5] = [Self::Enrol, Self::Renew, Self::Import, Self::Backup, Self::Rotate];

    /// Does it, and checks what came of it; what is worth a word.
    pub(crate) async fn perform(self, rig: &Rig) -> anyhow::Result<String> {
        let said = match self {
            Self::Enrol => enrol(rig).await,
            Self::Renew => renew(rig).await,
            Self::Import => import(rig).await,
            Self::Backup => backup(rig),
            Self::Rotate => rotate(rig),
        }?;
        rig.check_bystander().await?;
        Ok(said)
    }
}

/// Either the node is enrolled or the code is as good as before; or the operator, who is told
/// that it was used, makes another. In the end the node is who the controller knows.
async fn enrol(rig: &Rig) -> anyhow::Result<String> {
    let files = &rig.rack.files;
    let (state, config) = (files.directory.join("state/second"), files.directory.join("second.toml"));
    fs::write(&config, format!("state = {state:?}\nsocket = {:?}\n", files.directory.join("second.sock")))?;
    let _ = fs::remove_dir_all(&state);
    let network = json!({ "node": "10.76.0.1/24", "delegated": ["10.76.0.100", "10.76.0.199"] });
    // Its answer may be what is lost.
    while !items(&rig.read("/v1/racks").await?)?.iter().any(|rack| rack["name"] == "r2") {
        let _ = rig.api.post("/v1/racks", json!({ "name": "r2", "network": network })).await;
    }
    let (mut code, mut codes) = (fresh_code(rig).await?, 1);
    let controller = format!("{}:4433", rig.rack.cabling.controller_from_node());
    let end = Instant::now() + INSIST * 2;
    loop {
        let mut enrol = rig.rack.cabling.command(Place::Node, &files.binary("rackhand-agent").to_string_lossy());
        enrol.args(["enrol", "--controller", &controller, "--code", &code, "--config"]).arg(&config);
        enrol.env(rackhand_fail_points::DIRECTORY, files.fail_points(Service::Agent));
        let (ok, _, complaint) = rig.tended(|| outcome(&mut enrol))?;
        if ok {
            break;
        }
        // As the message says.
        if complaint.contains("make a new one with `rackhand agent enrol --rack") {
            ensure!(codes < 2, "a second code is of no use either: {complaint}");
            (code, codes) = (fresh_code(rig).await?, codes + 1);
        }
        ensure!(Instant::now() < end, "the node is not enrolled: {complaint}");
        tokio::time::sleep(LOOK * 10).await;
    }
    let known: Value = serde_json::from_slice(&fs::read(state.join("identity.json"))?)?;
    let agents = rig.read("/v1/agents").await?;
    let ours = |agent: &&Value| agent["rack"] == "r2" && agent["revoked"].is_null();
    let registered: Vec<_> = items(&agents)?.iter().filter(ours).map(|agent| &agent["id"]).collect();
    ensure!(registered == [&known["agent"]], "the node is {}, registered are {registered:?}", known["agent"]);
    Ok(if codes > 1 { "with a second code; ".into() } else { String::new() })
}

/// The agent is connected in the end, with a certificate of its full life.
async fn renew(rig: &Rig) -> anyhow::Result<String> {
    let files = &rig.rack.files;
    let file = files.state(Service::Agent).join("identity.json");
    let mut identity: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let role = Role::Agent {
        agent: identity["agent"].as_str().context("no agent")?.parse()?,
        rack: identity["rack"].as_str().context("no rack")?.parse()?,
    };
    // One of our own authority's, made two thirds of its life ago.
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?;
    let since = Timestamp::now() - AGENT_TTL * 2 / 3;
    let authority = Authority::open(&files.state(Service::Controller).join("pki"))?;
    let old = authority.issue(csr.der(), role, AGENT_TTL, since)?;
    identity["chain"] = old.chain.iter().map(hex::encode).collect::<Vec<_>>().into();
    identity["key"] = hex::encode(key.serialize_der()).into();
    rig.rack.services().restart_ended()?;
    rig.rack.kill(Service::Agent)?;
    fs::write(&file, serde_json::to_vec(&identity)?)?;
    rig.rack.start(Service::Agent)?;

    let end = Instant::now() + INSIST * 2;
    loop {
        rig.rack.services().restart_ended()?;
        let kept: Value = serde_json::from_slice(&fs::read(&file)?).context("the node's identity is damaged")?;
        let agents = rig.read("/v1/agents").await?;
        let row = items(&agents)?.iter().find(|agent| agent["id"] == kept["agent"]).context("it is not registered")?;
        if kept["key"] != identity["key"] && row["connected"] == true {
            return Ok(String::new());
        }
        ensure!(Instant::now() < end, "the certificate was not renewed: {row}");
        tokio::time::sleep(LOOK).await;
    }
}

/// The image is there in the end, asked for again if need be; and once the controller has been
/// started, its store holds the objects of its images and no others.
async fn import(rig: &Rig) -> anyhow::Result<String> {
    let raw = rig.rack.files.directory.join("other.raw");
    image::make(&raw, CHUNKS)?;
    let file = raw.to_string_lossy().into_owned();
    let operator = &rig.rack.operator;
    let mut tries = 1;
    while let Err(error) = rig.tended(|| operator.ask(&["image", "import", &file, "--name", "other", "--wait"])) {
        ensure!(tries < TRIES, "the image is not imported: {error:#}");
        forget(rig).await?;
        // Another one each time: what the last try left is of no use to the next.
        image::make(&raw, CHUNKS)?;
        tries += 1;
    }
    let images = rig.read("/v1/images").await?;
    let other = items(&images)?.iter().find(|image| image["name"] == "other").context("the image is not listed")?;
    ensure!(other["state"] == "ready", "what was imported is {other}");

    rig.rack.services().restart_ended()?;
    rig.rack.kill(Service::Controller)?;
    rig.rack.start(Service::Controller)?;
    let objects = rig.rack.files.state(Service::Controller).join("objects");
    let end = Instant::now() + INSIST;
    while let Err(error) = is_tidy(&objects, items(&images)?.len()) {
        ensure!(Instant::now() < end, "{error:#}");
        tokio::time::sleep(LOOK).await;
    }
    forget(rig).await?;
    Ok(if tries > 1 { format!("imported at try {tries}; ") } else { String::new() })
}

/// Fails unless there is a manifest for every image, and every chunk is in one.
fn is_tidy(objects: &Path, images: usize) -> anyhow::Result<()> {
    let (mut listed, mut manifests) = (BTreeSet::new(), 0);
    for file in below(&objects.join("manifests"))? {
        let signed: Value = serde_json::from_slice(&fs::read(file)?)?;
        let manifest: Value = serde_json::from_str(signed["manifest"].as_str().context("not a manifest")?)?;
        let chunks = manifest["chunks"].as_array().context("a manifest has no chunks")?;
        listed.extend(chunks.iter().filter_map(|chunk| chunk["digest"].as_str().map(str::to_owned)));
        manifests += 1;
    }
    ensure!(manifests == images, "{manifests} manifests of {images} images");
    let name = |file: &PathBuf| file.file_name().map(|name| name.to_string_lossy().into_owned());
    let kept: BTreeSet<_> = below(&objects.join("chunks"))?.iter().filter_map(name).collect();
    ensure!(kept == listed, "chunks of no image: {:?}", kept.symmetric_difference(&listed).collect::<Vec<_>>());
    Ok(())
}

/// The files below a directory.
fn below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// Deletes the image, in whatever state it is.
async fn forget(rig: &Rig) -> anyhow::Result<()> {
    let end = Instant::now() + INSIST;
    loop {
        let images = rig.read("/v1/images").await?;
        let Some(other) = items(&images)?.iter().find(|image| image["name"] == "other") else { return Ok(()) };
        let id = other["id"].as_str().context("an image has no id")?;
        let deleted = rig.rack.operator.ask(&["image", "delete", id]);
        ensure!(Instant::now() < end, "the image cannot be deleted: {deleted:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Whatever stands under the backup's name can be restored, and in the end it is a new one.
fn backup(rig: &Rig) -> anyhow::Result<String> {
    let files = &rig.rack.files;
    let file = files.directory.join("backup");
    let before = fs::read(&file).ok();
    for tried in 1..=TRIES {
        let mut backup = Command::new(files.binary("rackhand-controller"));
        backup.arg("backup").arg(&file).arg("--config").arg(files.config(Service::Controller));
        backup.env(rackhand_fail_points::DIRECTORY, files.fail_points(Service::Controller));
        let (ok, _, complaint) = outcome(&mut backup)?;
        if file.exists() {
            restores(rig, &file)?;
        }
        if ok {
            ensure!(fs::read(&file).ok() != before, "the backup is the one before");
            ensure!(!file.with_extension("part").exists(), "the backup's unfinished file is left");
            return Ok(if tried > 1 { format!("written at try {tried}; ") } else { String::new() });
        }
        ensure!(tried < TRIES, "no backup can be written: {complaint}");
    }
    bail!("no backup was written")
}

/// Fails unless a controller can be made of this file.
fn restores(rig: &Rig, file: &Path) -> anyhow::Result<()> {
    let (data, _) = restored(rig, file)?;
    Ok(fs::remove_dir_all(&data)?)
}

/// A controller made of this file: its data directory and its configuration.
fn restored(rig: &Rig, file: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let directory = &rig.rack.files.directory;
    let (data, config) = (directory.join("elsewhere"), directory.join("elsewhere.toml"));
    let _ = fs::remove_dir_all(&data);
    fs::write(&config, format!("data = {data:?}\nnames = [\"localhost\"]\n"))?;
    let mut restore = Command::new(rig.rack.files.binary("rackhand-controller"));
    output(restore.arg("restore").arg(file).arg("--config").arg(&config)).context("what is there is no backup")?;
    Ok((data, config))
}

/// Whatever strikes, the key that is there opens the database; in the end it is another one alone.
fn rotate(rig: &Rig) -> anyhow::Result<String> {
    let files = &rig.rack.files;
    let file = files.directory.join("backup");
    let mut backup = Command::new(files.binary("rackhand-controller"));
    output(backup.arg("backup").arg(&file).arg("--config").arg(files.config(Service::Controller)))?;
    let (data, config) = restored(rig, &file)?;
    let key = data.join("pki/seal.key");
    let before = fs::read_to_string(&key)?;
    for tried in 1..=TRIES {
        let mut rotate = Command::new(files.binary("rackhand-controller"));
        rotate.args(["seal", "rotate", "--config"]).arg(&config);
        rotate.env(rackhand_fail_points::DIRECTORY, files.fail_points(Service::Controller));
        let (ok, _, complaint) = outcome(&mut rotate)?;
        // Opens the database, and refuses a key that is not its own.
        let mut opened = Command::new(files.binary("rackhand-controller"));
        output(opened.args(["ca", "status", "--config"]).arg(&config)).context("the key does not open the database")?;
        if ok {
            let after = fs::read_to_string(&key)?;
            ensure!(after.lines().count() == 1, "the old key is still there");
            ensure!(after.trim() != before.trim(), "the key is the one before");
            fs::remove_dir_all(&data)?;
            return Ok(if tried > 1 { format!("replaced at try {tried}; ") } else { String::new() });
        }
        ensure!(tried < TRIES, "the key cannot be replaced: {complaint}");
    }
    bail!("the key was not replaced")
}

/// A code that nobody has; asked for again when that finds nobody or is refused by a fault.
async fn fresh_code(rig: &Rig) -> anyhow::Result<String> {
    let end = Instant::now() + INSIST;
    loop {
        rig.rack.services().restart_ended()?;
        match rig.api.post("/v1/racks/r2/enrolment-codes", json!({})).await {
            Err(_) if Instant::now() < end => tokio::time::sleep(LOOK).await,
            made => return Ok(made?["code"].as_str().context("no code")?.to_owned()),
        }
    }
}
