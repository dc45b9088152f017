//! The crash matrix: every fail point of the real programs, in every way it can fail, while a
//! computer is deployed, switched off and on, reinstalled, and released. After each the world is one of those
//! the promises allow:
//!
//! - The computer arrives. Only where an error was injected, or a power command's outcome is
//!   unknown, may the run end failed instead, with a named reason; asked again, it arrives.
//! - An active computer's disk is the image with this deploy's settings; a ready one's is zeros.
//! - One cycle switches it off at most once; its address stays; no event is told twice.
//! - The bystander, an active computer beside it, is not written to, not switched, not restarted.
//! - A lease that was given is there after boot was killed, and nobody else has its address.
//! - What is done beside the machines ([`Act`]) arrives when it is asked for again, and leaves no
//!   half of itself.

mod act;
pub(crate) mod computer;
mod faults;
mod rig;

use std::{
    collections::BTreeMap,
    fmt, fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rackhand_fail_points::{Mode, POINTS, Program};

use self::{
    act::Act,
    rig::{Arrival, Rig, Way},
};
use crate::{rack::Parts, services::Service, watch::Watch};

/// How long a way may take, with a crash in it.
const PATIENCE: Duration = Duration::from_secs(240);

/// A fault that has not struck when the computer has arrived may still do so.
const LATE: Duration = Duration::from_secs(3);

/// What is going on when a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// The computer goes a way.
    Way(Way),
    /// A card nobody knows asks for an address.
    Newcomer,
    /// Something is done beside the machines.
    Act(Act),
}

/// One field of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    scene: Scene,
    program: Program,
    point: &'static str,
    mode: String,
    /// At which time the point is reached.
    count: u32,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scene = match self.scene {
            Scene::Way(way) => format!("{way:?}").to_lowercase(),
            Scene::Newcomer => "newcomer".to_owned(),
            Scene::Act(act) => format!("{act:?}").to_lowercase(),
        };
        let program = format!("{:?}", self.program).to_lowercase();
        write!(f, "{scene}: {program} {} {} {}", self.point, self.mode, self.count)
    }
}

impl Cell {
    /// Whether the run may fail by a named reason: where an error was given to it, and where
    /// nobody can know whether power was switched.
    fn may_fail(&self) -> bool {
        let power = ["power.act", "ledger.begin", "ledger.end", "ledger.accept", "spool.commit"];
        self.mode == Mode::Error.to_string()
            || (self.scene == Scene::Way(Way::Cycle) && self.program == Program::Agent && power.contains(&self.point))
    }
}

/// In which scenes a point is reached, and how often it is tried in each.
fn scenes(point: &str) -> &'static [(Scene, &'static [u32])] {
    const DEPLOY: Scene = Scene::Way(Way::Deploy);
    const CYCLE: Scene = Scene::Way(Way::Cycle);
    const REINSTALL: Scene = Scene::Way(Way::Reinstall);
    const RELEASE: Scene = Scene::Way(Way::Release);
    const TEST: Scene = Scene::Way(Way::Test);
    const ENROL: Scene = Scene::Act(Act::Enrol);
    const RENEW: Scene = Scene::Act(Act::Renew);
    const IMPORT: Scene = Scene::Act(Act::Import);
    const BACKUP: Scene = Scene::Act(Act::Backup);
    const ROTATE: Scene = Scene::Act(Act::Rotate);
    match point {
        "identity.keep" => &[(ENROL, &[1]), (RENEW, &[1])],
        "image.put" => &[(IMPORT, &[1, 2, 3])],
        "backup.write" | "backup.name" => &[(BACKUP, &[1])],
        "seal.begin" | "seal.end" => &[(ROTATE, &[1])],
        "lease.commit" => &[(Scene::Newcomer, &[1])],
        "step.boot installer" | "chunk.keep" | "image.clear" | "image.flush" | "boot-order.set" => &[(DEPLOY, &[1])],
        "step.write image" | "step.start system" => &[(DEPLOY, &[1, 3])],
        "image.write" => &[(DEPLOY, &[1, 2])],
        "image.finish" => &[(DEPLOY, &[1, 2, 3, 4])],
        "step.leave system" => &[(REINSTALL, &[1, 3])],
        "step.run tests" => &[(TEST, &[1, 3])],
        "step.switch power" => &[(CYCLE, &[1, 2])],
        "ledger.accept" | "ledger.begin" | "ledger.end" | "command.send" => &[(CYCLE, &[1]), (RELEASE, &[1])],
        "power.act" => &[(CYCLE, &[1, 2]), (RELEASE, &[1, 2])],
        "step.restore BMC" | "step.set BMC password" => &[(RELEASE, &[1])],
        "step.restart into installer" | "step.erase disks" => &[(RELEASE, &[1, 3])],
        "erase.pattern" | "erase.overwrite" | "erase.verify" | "boot-entries.forget" => &[(RELEASE, &[1])],
        "ledger.welcomed" => &[(DEPLOY, &[1])],
        "store.commit" => &[
            (DEPLOY, &[1, 2, 3, 4, 6, 8]),
            (CYCLE, &[1, 2, 4]),
            (REINSTALL, &[2, 4]),
            (RELEASE, &[1, 2, 3, 4, 6, 8]),
            // Of the code and of what it is exchanged for; of the greeting and the renewal; of
            // the import's beginning, its progress and its end.
            (ENROL, &[1, 2]),
            (RENEW, &[1, 2]),
            (IMPORT, &[1, 2, 3]),
        ],
        "spool.commit" => &[(DEPLOY, &[1, 2, 4]), (RELEASE, &[1, 2, 4])],
        "channel.ask" => &[(DEPLOY, &[1, 2]), (RELEASE, &[1, 3])],
        "installer.record" | "intent.replace" | "ticket.write" | "order.check" => &[(DEPLOY, &[1]), (RELEASE, &[1])],
        _ => &[],
    }
}

fn cells() -> anyhow::Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for point in POINTS {
        let scenes = scenes(point.name);
        ensure!(!scenes.is_empty(), "fail point {} is in no scene of the matrix", point.name);
        for (scene, counts) in scenes {
            for program in point.programs {
                for mode in point.modes {
                    cells.extend(counts.iter().map(|count| Cell {
                        scene: *scene,
                        program: *program,
                        point: point.name,
                        mode: mode.to_string(),
                        count: *count,
                    }));
                }
            }
        }
    }
    // The ticket of a deploy's installer was there before it; only its restarts make another.
    cells.retain(|cell| (cell.point, cell.scene) != ("ticket.write", Scene::Way(Way::Deploy)));
    Ok(cells)
}

/// What is left to do, and what came of the rest.
#[derive(Debug, Default)]
struct Book {
    left: BTreeMap<Scene, Vec<Cell>>,
    passed: usize,
    /// Their point was not reached that often.
    beyond: Vec<Cell>,
    failed: Vec<String>,
}

impl Book {
    fn take(&mut self, scene: Scene) -> Option<Cell> {
        self.left.get_mut(&scene)?.pop()
    }

    /// Whether the computer has to go on for what is left.
    fn has_ways(&self) -> bool {
        self.left.iter().any(|(scene, cells)| matches!(scene, Scene::Way(_)) && !cells.is_empty())
    }

    fn is_done(&self) -> bool {
        self.left.values().all(Vec::is_empty)
    }
}

/// Tries every field with `only` in its name, on so many racks at once; ends with how many held.
pub(crate) fn tell(parts: &Parts, only: Option<&str>, racks: u8, every: usize) -> anyhow::Result<()> {
    rackhand_common::pki::install_crypto();
    let start = Instant::now();
    let mut book = Book::default();
    let wanted = cells()?.into_iter().filter(|cell| only.is_none_or(|only| cell.to_string().contains(only)));
    for cell in wanted.step_by(every) {
        book.left.entry(cell.scene).or_default().push(cell);
    }
    let fields: usize = book.left.values().map(Vec::len).sum();
    let others = faults::wanted(only);
    println!("{fields} fields of the matrix and {} other faults on {racks} racks", others.len());
    let book = Arc::new(Mutex::new(book));
    std::thread::scope(|scope| {
        for number in 0..racks {
            let (book, others) = (book.clone(), &others);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("a rack of the matrix gets a runtime");
                let mine = others.iter().skip(number.into()).step_by(racks.into());
                runtime.block_on(work(number, racks, parts, &book, mine.copied().collect()));
            });
        }
    });
    let book = Arc::into_inner(book).expect("all racks are done").into_inner().unwrap_or_else(PoisonError::into_inner);
    if !book.beyond.is_empty() {
        println!("{} fields lie beyond what was reached, as their count is higher:", book.beyond.len());
        book.beyond.iter().for_each(|cell| println!("   {cell}"));
    }
    for failure in &book.failed {
        println!("FAILED {failure}\n");
    }
    println!("the matrix took {:.1} s", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed", book.passed, book.failed.len());
    ensure!(book.failed.is_empty() && book.passed > 0, "a world that is not allowed, or no field at all");
    Ok(())
}

/// Works on one rack until nothing is left. A rack on which something failed is left as it is,
/// for whoever looks into it, and another is built.
async fn work(number: u8, racks: u8, parts: &Parts, book: &Mutex<Book>, mut others: Vec<faults::Fault>) {
    let lock = || book.lock().unwrap_or_else(PoisonError::into_inner);
    let mut built = 0;
    while !lock().is_done() || !others.is_empty() {
        let name = number + racks * built;
        built += 1;
        let mut rig = match Rig::build(name, parts).await {
            Ok(rig) => rig,
            Err(error) => {
                lock().failed.push(format!("rack {name} cannot be built: {error:#}"));
                return;
            }
        };
        match rounds(&mut rig, book, &mut others).await {
            Ok(()) => rig.tear_down(),
            Err(failure) => {
                println!("test {failure}");
                lock().failed.push(failure);
                rig.cut();
                if built == 8 {
                    return;
                }
            }
        }
    }
}

async fn rounds(rig: &mut Rig, book: &Mutex<Book>, others: &mut Vec<faults::Fault>) -> Result<(), String> {
    let lock = || book.lock().unwrap_or_else(PoisonError::into_inner);
    while !lock().is_done() {
        let mut is_active = false;
        for scene in Way::ALL.map(Scene::Way).into_iter().chain([Scene::Newcomer]).chain(Act::ALL.map(Scene::Act)) {
            let cell = lock().take(scene);
            // Other racks may take the last of the ways meanwhile: what is deployed is released.
            let is_needed = match scene {
                Scene::Way(Way::Deploy) => lock().has_ways(),
                Scene::Way(Way::Release) => is_active,
                _ => false,
            };
            if cell.is_none() && !is_needed {
                continue;
            }
            match scene {
                Scene::Way(Way::Deploy) => is_active = true,
                Scene::Way(Way::Release) => is_active = false,
                _ => {}
            }
            let began = Instant::now();
            let _watch = Watch::over(&cell.as_ref().map_or_else(|| format!("{scene:?}"), ToString::to_string));
            let tried = play(rig, scene, cell.as_ref()).await;
            let Some(cell) = cell else {
                tried.map_err(|error| format!("{scene:?} without a fault: {error:#}"))?;
                continue;
            };
            let took = began.elapsed().as_secs_f64();
            match tried {
                Ok(Struck::Yes(how)) => {
                    println!("test {cell} ... ok ({how}{took:.1} s)");
                    lock().passed += 1;
                }
                Ok(Struck::NotReached) => lock().beyond.push(cell),
                Err(error) => return Err(format!("{cell} ... FAILED ({took:.1} s): {error:#}")),
            }
        }
    }
    while let Some(fault) = others.pop() {
        let began = Instant::now();
        let _watch = Watch::over(&fault.to_string());
        fault.suffer(rig).await.map_err(|error| format!("{fault} ... FAILED: {error:#}"))?;
        println!("test {fault} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
        lock().passed += 1;
    }
    Ok(())
}

/// Whether a fault struck.
enum Struck {
    /// And what came of it, when that is worth a word.
    Yes(String),
    /// Its point was not reached as often.
    NotReached,
}

/// Plays a scene with a fault armed, and checks the world after it.
async fn play(rig: &mut Rig, scene: Scene, cell: Option<&Cell>) -> anyhow::Result<Struck> {
    let armed = cell.map(|cell| rig.fail_points(cell.program).join("armed"));
    if let (Some(cell), Some(armed)) = (cell, &armed) {
        if cell.point == "chunk.keep" {
            rig.empty_chunk_cache()?;
        }
        fs::write(armed, format!("{} {} {}\n", cell.point, cell.mode, cell.count))?;
        if cell.point == "ledger.welcomed" {
            rig.rack.kill(Service::Agent)?;
            rig.rack.start(Service::Agent)?;
        }
    }
    let may_fail = cell.is_some_and(Cell::may_fail);
    let how = match scene {
        Scene::Newcomer => rig.newcomer().map(|()| String::new())?,
        Scene::Act(act) => act.perform(rig).await.context("a world that is not allowed")?,
        Scene::Way(way) => travel(rig, way, may_fail).await?,
    };
    let Some((armed, cell)) = armed.zip(cell) else { return Ok(Struck::Yes(how)) };
    let end = Instant::now() + LATE;
    while armed.exists() && Instant::now() < end && cell.count == 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if fs::remove_file(&armed).is_ok() {
        ensure!(cell.count > 1, "the point was never reached");
        return Ok(Struck::NotReached);
    }
    Ok(Struck::Yes(how))
}

/// Goes a way, if need be in a second try, and checks the world after it.
async fn travel(rig: &Rig, way: Way, may_fail: bool) -> anyhow::Result<String> {
    let effects = rig.computer.effects()?.len();
    let how = match rig.go(way, PATIENCE).await? {
        Arrival::There => String::new(),
        Arrival::Failed(why) => {
            ensure!(may_fail, "the run failed, and no error was given to it: {why}");
            rig.rest(way).await?;
            if way == Way::Cycle {
                // It was for the operator to decide; the check counts what was done.
                rig.check(way, effects).await?;
            }
            let again = rig.go(way, PATIENCE).await?;
            ensure!(again == Arrival::There, "asked again, the run failed again: {again:?}");
            format!("failed as {why:?}, then arrived; ")
        }
    };
    let effects = if way == Way::Cycle && !how.is_empty() { rig.computer.effects()?.len() } else { effects };
    rig.check(way, effects).await.context("a world that is not allowed")?;
    Ok(how)
}
