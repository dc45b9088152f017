//! What sensors read over time, on the node's own disk: each reading for two days, spans of five
//! minutes for thirty, hours for a year.
//!
//! Invariants:
//! - A reading and the spans it belongs to are committed together. A kill loses at most what came
//!   in the last [`PAUSE`].
//! - The store is bounded: by time, by [sensors of a machine](MAX_SENSORS), and by bytes, for which
//!   all three spans are kept shorter in equal parts.
//! - Nothing is decided by what is here: a store that cannot be read is made anew.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rackhand_common::{
    bmc::SensorKind,
    health::{self, MAX_POINTS, Point, SeriesQuery},
    id::MachineId,
    time::Clock,
};
use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::spool::{SpoolError, blocking, chain, open_database};

/// The most sensors of one machine whose readings are kept.
pub const MAX_SENSORS: u16 = 256;

/// The most bytes of readings and spans, without what the store needs around them.
pub const MAX_BYTES: u64 = 768 << 20;

/// How long samples are collected before they are written together.
const PAUSE: Duration = Duration::from_secs(5);

/// How often what is too old goes.
const PRUNE: Duration = Duration::from_secs(1800);

/// Samples that wait to be written: ten seconds of a hundred racks' worth. What comes when it is full is
/// lost, and counted.
const QUEUE: usize = 1024;

/// Machine, second; sensors' numbers and values.
const RAW: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("raw");
/// Machine, first second; sensors' numbers and spans.
const MINUTES: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("minutes");
/// The same.
const HOURS: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("hours");
/// Machine and sensor; its number and its kind as JSON.
const SENSORS: TableDefinition<(u128, &str), (u16, &str)> = TableDefinition::new("sensors");

/// How long each is kept, in seconds, and what one row of it stands for.
const KEPT: [(u64, u64); 3] = [(48 * 3600, 0), (30 * 86400, 300), (365 * 86400, 3600)];

/// In how many steps what is kept is shortened when it is too much.
const SHORTER: u64 = 16;

/// The sensors of a machine as they read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Which machine.
    pub machine: MachineId,
    /// When.
    pub at: Timestamp,
    /// Their names, what they measure, and their values.
    pub readings: Vec<(String, SensorKind, f64)>,
}

/// A handle to the store.
#[derive(Clone, Debug)]
pub struct Series {
    database: Arc<Database>,
    queue: mpsc::Sender<Sample>,
    lost: Arc<AtomicU64>,
}

/// The other end: whoever [writes](Writer::run).
#[derive(Debug)]
pub struct Writer {
    database: Arc<Database>,
    samples: mpsc::Receiver<Sample>,
    lost: Arc<AtomicU64>,
    /// The most bytes.
    limit: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NoSeries {
    /// No such sensor; these there are.
    #[error("nothing is kept of a sensor `{0}` of this machine; there are: {1}")]
    NoSensor(String, String),
    /// The span is none.
    #[error("`from` is not before `to`")]
    NoSpan,
    /// The store fails.
    #[error("what was kept cannot be read")]
    Store(#[from] SpoolError),
}

/// Several readings of a sensor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    min: f32,
    max: f32,
    sum: f64,
    count: u32,
}

/// Bytes of a sensor in a row of [`RAW`], and of a span.
const READING: usize = 2 + 4;
const SPAN: usize = 2 + 4 + 4 + 8 + 4;

impl Span {
    fn of(value: f32) -> Self {
        Self { min: value, max: value, sum: f64::from(value), count: 1 }
    }

    fn add(&mut self, value: f32) {
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += f64::from(value);
        self.count = self.count.saturating_add(1);
    }

    fn mean(&self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("cut to this length")
}

fn encode_readings(readings: &[(u16, f32)]) -> Vec<u8> {
    readings.iter().flat_map(|(number, value)| [&number.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

/// Half a sensor at the end, of a row that somebody else wrote, is left out.
fn decode_readings(bytes: &[u8]) -> impl Iterator<Item = (u16, f32)> {
    let one = |bytes: &[u8]| (u16::from_le_bytes(array(&bytes[..2])), f32::from_le_bytes(array(&bytes[2..6])));
    bytes.chunks_exact(READING).map(one)
}

fn encode_spans(spans: &BTreeMap<u16, Span>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(spans.len() * SPAN);
    for (number, span) in spans {
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&span.min.to_le_bytes());
        bytes.extend_from_slice(&span.max.to_le_bytes());
        bytes.extend_from_slice(&span.sum.to_le_bytes());
        bytes.extend_from_slice(&span.count.to_le_bytes());
    }
    bytes
}

fn decode_spans(bytes: &[u8]) -> impl Iterator<Item = (u16, Span)> {
    let one = |bytes: &[u8]| {
        let span = Span {
            min: f32::from_le_bytes(array(&bytes[2..6])),
            max: f32::from_le_bytes(array(&bytes[6..10])),
            sum: f64::from_le_bytes(array(&bytes[10..18])),
            count: u32::from_le_bytes(array(&bytes[18..22])),
        };
        (u16::from_le_bytes(array(&bytes[..2])), span)
    };
    bytes.chunks_exact(SPAN).map(one)
}

fn second(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or_default()
}

impl Series {
    /// The store in this file, made when there is none, and made anew when it cannot be read.
    pub fn open(path: &Path) -> Result<(Self, Writer), SpoolError> {
        Self::with_limit(path, MAX_BYTES)
    }

    fn with_limit(path: &Path, limit: u64) -> Result<(Self, Writer), SpoolError> {
        let database = open_database(path).or_else(|error| {
            // Its lock is another process's: not ours to remove.
            if matches!(&error, SpoolError::Open { source, .. } if matches!(**source, redb::Error::DatabaseAlreadyOpen))
            {
                return Err(error);
            }
            tracing::error!(error = chain(&error), "the sensors' series cannot be read: they begin anew");
            std::fs::remove_file(path).map_err(redb::Error::Io)?;
            open_database(path)
        })?;
        let tx = database.begin_write()?;
        tx.open_table(SENSORS)?;
        for table in [RAW, MINUTES, HOURS] {
            tx.open_table(table)?;
        }
        tx.commit()?;
        let (queue, samples) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer { database: database.clone(), samples, lost: lost.clone(), limit };
        Ok((Self { database, queue, lost }, writer))
    }

    /// Has a sample written soon, unless too many wait for that.
    pub fn offer(&self, sample: Sample) {
        if self.queue.try_send(sample).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was kept of a sensor, as fine as it still is and fits an answer.
    pub async fn read(
        &self,
        now: Timestamp,
        machine: MachineId,
        query: SeriesQuery,
    ) -> Result<health::Series, NoSeries> {
        if query.from >= query.to {
            return Err(NoSeries::NoSpan);
        }
        let (database, asked) = (self.database.clone(), query.sensor.clone());
        match blocking(move || read(&database, now, machine, &query)).await? {
            Ok(series) => Ok(series),
            Err(there) => Err(NoSeries::NoSensor(asked, there.join(", "))),
        }
    }
}

/// The series, or the names of the sensors that there are.
fn read(
    database: &Database,
    now: Timestamp,
    machine: MachineId,
    query: &SeriesQuery,
) -> Result<Result<health::Series, Vec<String>>, SpoolError> {
    let machine = machine.0.as_u128();
    let tx = database.begin_read()?;
    let sensors = tx.open_table(SENSORS)?;
    let Some(found) = sensors.get((machine, query.sensor.as_str()))? else {
        let mut names = Vec::new();
        for entry in sensors.range((machine, "")..)? {
            let (key, _) = entry?;
            let (of, name) = key.value();
            if of != machine {
                break;
            }
            names.push(name.to_owned());
        }
        return Ok(Err(names));
    };
    let (number, kind) = found.value();
    let kind: SensorKind = serde_json::from_str(kind).unwrap_or(SensorKind::Other);
    let (from, to) = (second(query.from), second(query.to));
    let is_kept = |(kept, _): &(u64, u64)| second(now).saturating_sub(*kept) <= from;
    let finest = KEPT.iter().position(is_kept).unwrap_or(KEPT.len() - 1);
    let mut points = Vec::new();
    let mut step = 0;
    for at in finest..KEPT.len() {
        step = KEPT[at].1;
        let table = tx.open_table([RAW, MINUTES, HOURS][at])?;
        points.clear();
        // A span that began before may reach into it.
        let first = from.saturating_sub(step.saturating_sub(1));
        for entry in table.range((machine, first)..(machine, to))? {
            let (key, value) = entry?;
            let at = Timestamp::from_second(i64::try_from(key.value().1).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
            let point = if step == 0 {
                let value = decode_readings(value.value()).find(|(of, _)| *of == number);
                value.map(|(_, value)| Span::of(value))
            } else {
                decode_spans(value.value()).find(|(of, _)| *of == number).map(|(_, span)| span)
            };
            let Some(span) = point else { continue };
            points.push(Point { at, min: span.min.into(), mean: span.mean(), max: span.max.into() });
            if points.len() > MAX_POINTS && step < KEPT[KEPT.len() - 1].1 {
                break;
            }
        }
        if points.len() <= MAX_POINTS {
            break;
        }
    }
    // A year of hours is more than an answer holds: days of them.
    if points.len() > MAX_POINTS {
        let together = points.len().div_ceil(MAX_POINTS);
        step *= together as u64;
        points = points.chunks(together).map(merged).collect();
    }
    Ok(Ok(health::Series {
        sensor: query.sensor.clone(),
        kind,
        unit: kind.unit().to_owned(),
        step: u32::try_from(step).unwrap_or(u32::MAX),
        points,
    }))
}

fn merged(points: &[Point]) -> Point {
    let first = points[0];
    Point {
        at: first.at,
        min: points.iter().map(|point| point.min).fold(first.min, f64::min),
        mean: points.iter().map(|point| point.mean).sum::<f64>() / points.len() as f64,
        max: points.iter().map(|point| point.max).fold(first.max, f64::max),
    }
}

impl Writer {
    /// Writes what is offered until `shutdown`, and what waits then.
    pub async fn run(mut self, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let mut prune = tokio::time::interval(PRUNE);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                received = self.samples.recv_many(&mut batch, QUEUE) => if received == 0 { return },
                _ = prune.tick() => {
                    let (database, limit, now) = (self.database.clone(), self.limit, clock.now().wall);
                    let pruned = blocking(move || pruned(&database, now, limit)).await;
                    if let Err(error) = pruned {
                        tracing::error!(error = chain(&error), "old readings of sensors cannot be removed");
                    }
                }
                () = shutdown.cancelled() => {
                    self.samples.close();
                    while let Some(sample) = self.samples.recv().await {
                        batch.push(sample);
                    }
                    self.write(batch).await;
                    return;
                }
            }
            if !batch.is_empty() {
                self.write(batch).await;
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
    }

    async fn write(&self, batch: Vec<Sample>) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "readings of sensors were lost: the disk is too slow");
        }
        let database = self.database.clone();
        if let Err(error) = blocking(move || written(&database, &batch)).await {
            tracing::error!(error = chain(&error), "readings of sensors cannot be kept");
        }
    }
}

/// Writes these in one transaction.
fn written(database: &Database, batch: &[Sample]) -> Result<(), SpoolError> {
    let tx = database.begin_write()?;
    for sample in batch {
        let readings = numbered(&tx, sample)?;
        let key = (sample.machine.0.as_u128(), second(sample.at));
        tx.open_table(RAW)?.insert(key, encode_readings(&readings).as_slice())?;
        for (table, step) in [(MINUTES, KEPT[1].1), (HOURS, KEPT[2].1)] {
            let mut table = tx.open_table(table)?;
            let key = (key.0, key.1 / step * step);
            let mut spans: BTreeMap<u16, Span> =
                table.get(key)?.map(|value| decode_spans(value.value()).collect()).unwrap_or_default();
            for (number, value) in &readings {
                spans.entry(*number).and_modify(|span| span.add(*value)).or_insert_with(|| Span::of(*value));
            }
            table.insert(key, encode_spans(&spans).as_slice())?;
        }
    }
    Ok(tx.commit()?)
}

/// Its readings with the numbers of the sensors, as far as there are numbers left.
fn numbered(tx: &WriteTransaction, sample: &Sample) -> Result<Vec<(u16, f32)>, SpoolError> {
    let machine = sample.machine.0.as_u128();
    let mut sensors = tx.open_table(SENSORS)?;
    let mut readings = Vec::with_capacity(sample.readings.len());
    let mut next = None;
    for (name, kind, value) in &sample.readings {
        let known = sensors.get((machine, name.as_str()))?.map(|known| known.value().0);
        let number = match known {
            Some(number) => number,
            None => {
                let number = match next {
                    Some(number) => number,
                    None => {
                        let mut count = 0;
                        for entry in sensors.range((machine, "")..)? {
                            if entry?.0.value().0 != machine {
                                break;
                            }
                            count += 1;
                        }
                        count
                    }
                };
                next = Some(number);
                if number >= MAX_SENSORS {
                    continue;
                }
                let kind = serde_json::to_string(kind).expect("kinds always serialize");
                sensors.insert((machine, name.as_str()), (number, kind.as_str()))?;
                next = Some(number + 1);
                number
            }
        };
        readings.push((number, *value as f32));
    }
    Ok(readings)
}

/// Removes what is too old, and more of it while there is too much; the bytes that are left.
fn pruned(database: &Database, now: Timestamp, limit: u64) -> Result<u64, SpoolError> {
    for part in (1..=SHORTER).rev() {
        let tx = database.begin_write()?;
        let mut bytes = 0;
        for (table, (kept, _)) in [RAW, MINUTES, HOURS].into_iter().zip(KEPT) {
            let oldest = second(now).saturating_sub(kept / SHORTER * part);
            let mut table = tx.open_table(table)?;
            table.retain(|(_, at), value| {
                // What a clock that was ahead wrote goes, too.
                let stays = at >= oldest && at <= second(now) + 86400;
                bytes += if stays { value.len() as u64 } else { 0 };
                stays
            })?;
        }
        tx.commit()?;
        if bytes <= limit || part == 1 {
            return Ok(bytes);
        }
    }
    unreachable!("the last part returns")
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn sample(machine: MachineId, second: i64, value: f64) -> Sample {
        Sample { machine, at: at(second), readings: vec![("CPU1 Temp".into(), SensorKind::Temperature, value)] }
    }

    fn query(from: i64, to: i64) -> SeriesQuery {
        SeriesQuery { sensor: "CPU1 Temp".into(), from: at(from), to: at(to) }
    }

    #[tokio::test]
    async fn a_series_is_as_fine_as_it_is_kept_and_says_what_it_stands_for() {
        let dir = tempfile::tempdir().unwrap();
        let (series, writer) = Series::open(&dir.path().join("series.redb")).unwrap();
        let machine = MachineId::fresh();
        let samples: Vec<_> = (0..30).map(|minute| sample(machine, minute * 60, minute as f64)).collect();
        written(&writer.database, &samples).unwrap();
        written(&writer.database, &[sample(MachineId::fresh(), 0, 99.0)]).unwrap();

        let raw = series.read(at(1800), machine, query(0, 3600)).await.unwrap();
        assert_eq!((raw.step, raw.unit.as_str(), raw.points.len()), (0, "°C", 30));
        assert_eq!(raw.points[3], Point { at: at(180), min: 3.0, mean: 3.0, max: 3.0 });
        // Three days later only spans are left.
        let later = at(3 * 86400);
        pruned(&writer.database, later, MAX_BYTES).unwrap();
        let minutes = series.read(later, machine, query(0, 3600)).await.unwrap();
        assert_eq!((minutes.step, minutes.points.len()), (300, 6));
        assert_eq!(minutes.points[1], Point { at: at(300), min: 5.0, mean: 7.0, max: 9.0 });
        let later = at(60 * 86400);
        pruned(&writer.database, later, MAX_BYTES).unwrap();
        let hours = series.read(later, machine, query(0, 3600)).await.unwrap();
        assert_eq!((hours.step, hours.points.len()), (3600, 1));
        assert_eq!((hours.points[0].min, hours.points[0].mean, hours.points[0].max), (0.0, 14.5, 29.0));
        assert_eq!(pruned(&writer.database, at(400 * 86400), MAX_BYTES).unwrap(), 0);

        let other = SeriesQuery { sensor: "CPU2".into(), ..query(0, 1) };
        let refused = series.read(later, machine, other).await.unwrap_err().to_string();
        assert_eq!(refused, "nothing is kept of a sensor `CPU2` of this machine; there are: CPU1 Temp");
        assert!(matches!(series.read(later, machine, query(1, 1)).await, Err(NoSeries::NoSpan)));
    }

    #[tokio::test]
    async fn an_answer_has_a_bound_whatever_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (series, writer) = Series::open(&dir.path().join("series.redb")).unwrap();
        let machine = MachineId::fresh();
        let hours: Vec<_> = (0..300 * 24).map(|hour| sample(machine, hour * 3600, f64::from(hour as i32))).collect();
        written(&writer.database, &hours).unwrap();
        let year = series.read(at(300 * 86400), machine, query(0, 300 * 86400)).await.unwrap();
        assert!(year.points.len() <= MAX_POINTS && year.points.len() > MAX_POINTS / 2, "{}", year.points.len());
        assert_eq!(year.step, 4 * 3600);
        assert_eq!((year.points[0].min, year.points[0].max), (0.0, 3.0));
        assert_eq!(year.points.last().unwrap().max, 7199.0);
    }

    #[tokio::test]
    async fn sensors_and_bytes_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (_, writer) = Series::open(&dir.path().join("series.redb")).unwrap();
        let machine = MachineId::fresh();
        let many = (0..2 * MAX_SENSORS).map(|n| (format!("S{n}"), SensorKind::Fan, 1.0)).collect();
        written(&writer.database, &[Sample { machine, at: at(0), readings: many }]).unwrap();
        let kept = pruned(&writer.database, at(0), u64::MAX).unwrap();
        assert_eq!(kept, u64::from(MAX_SENSORS) * (READING + 2 * SPAN) as u64);

        let machine = MachineId::fresh();
        let hours: Vec<_> = (1..=300 * 24).map(|hour| sample(machine, hour * 3600, 1.0)).collect();
        written(&writer.database, &hours).unwrap();
        let now = at(300 * 86400);
        let all = pruned(&writer.database, now, u64::MAX).unwrap();
        let left = pruned(&writer.database, now, all / 3).unwrap();
        assert!(left <= all / 3 && left > all / 10, "{left} of {all}");
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_kill_and_a_store_that_is_none_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("series.redb");
        let (machine, now) = (MachineId::fresh(), Timestamp::now());
        let minute = SignedDuration::from_secs(60);
        let query = || SeriesQuery { sensor: "CPU1 Temp".into(), from: now - minute, to: now + minute };
        {
            let (series, writer) = Series::open(&path).unwrap();
            series.offer(Sample { at: now, ..sample(machine, 0, 1.0) });
            let shutdown = CancellationToken::new();
            shutdown.cancel();
            writer.run(Arc::new(crate::clock::SystemClock::default()), shutdown).await;
        }
        // As it stands on the disk while the process is alive.
        let (series, _) = Series::open(&path).unwrap();
        assert!(Series::open(&path).is_err(), "one that is open is removed");
        let copy = dir.path().join("copy.redb");
        std::fs::copy(&path, &copy).unwrap();
        let (killed, _) = Series::open(&copy).unwrap();
        for series in [series, killed] {
            assert_eq!(series.read(now, machine, query()).await.unwrap().points.len(), 1);
        }
        std::fs::write(&copy, "no database").unwrap();
        let (anew, _) = Series::open(&copy).unwrap();
        assert!(anew.read(now, machine, query()).await.is_err());
    }
}
