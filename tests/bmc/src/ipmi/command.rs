//! The commands of IPMI 2.0 and DCMI, each from its request to its answer.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::session::{Session, Suite, privilege};
use crate::{
    chassis::{Boot, Chassis, Source},
    personality::{GuidOrder, Kind, Reading, Role, Thresholds},
    sensor::{Sensor, in_order},
    state::{MAX_NAME, MAX_PASSWORD, PowerAct, PowerError, Rotated, State, USERS},
};

/// What a command is answered from.
pub(crate) struct Context<'a> {
    pub(crate) now: Timestamp,
    pub(crate) state: &'a mut State,
    pub(crate) chassis: &'a dyn Chassis,
    pub(crate) memory: &'a mut Memory,
    /// Whether it came from the machine itself, by the system interface, which needs no login.
    pub(crate) is_in_band: bool,
    /// The session it came in, if it came in one.
    pub(crate) session: Option<&'a mut Session>,
    /// Sessions that are open.
    pub(crate) sessions: u8,
    /// Whether a session has the console.
    pub(crate) is_console_taken: bool,
    /// The UDP port that answers.
    pub(crate) port: u16,
}

/// What only IPMI's side remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Reservation of the sensor data records.
    records: u16,
    /// Boot option parameter 3: what does not clear the boot flags.
    keeps_flags: u8,
    /// Set-in-progress, of boot options and of the network.
    in_progress: [u8; 2],
    /// Boot option parameter 4.
    acknowledged: u8,
    /// Data 2 to 5 of the boot flags, as they were set.
    flags: [u8; 4],
}

/// Why there is no ordinary answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum No {
    /// A completion code.
    Code(u8),
    /// Silence.
    Silence,
}

/// Data after the completion code 0x00.
type Answer = Result<Vec<u8>, No>;

const INVALID_COMMAND: No = No::Code(0xc1);
const TIMEOUT_OF_RESERVATION: No = No::Code(0xc5);
const LENGTH: No = No::Code(0xc7);
const OUT_OF_RANGE: No = No::Code(0xc9);
const TOO_MUCH: No = No::Code(0xca);
const NOT_PRESENT: No = No::Code(0xcb);
const INVALID_FIELD: No = No::Code(0xcc);
const NO_PRIVILEGE: No = No::Code(0xd4);
const NOT_NOW: No = No::Code(0xd5);
const UNSPECIFIED: No = No::Code(0xff);

/// The privilege a command needs (IPMI 2.0 appendix G), and 0 for those outside a session.
fn needed(net_fn: u8, command: u8) -> u8 {
    match (net_fn, command) {
        (0x06, 0x38 | 0x54) => 0,
        (0x06, 0x02 | 0x03 | 0x40 | 0x43..=0x47 | 0x4c) | (0x0c, 0x01 | 0x21) => 4,
        (0x00, 0x02 | 0x04 | 0x05 | 0x06 | 0x08) => 3,
        (0x04, 0x24 | 0x26 | 0x28) | (0x0a, 0x12 | 0x44 | 0x46 | 0x47 | 0x49) => 3,
        _ => 2,
    }
}

/// Answers one request.
pub(crate) fn answer(context: &mut Context<'_>, net_fn: u8, command: u8, data: &[u8]) -> Answer {
    if context.state.faults.busy {
        return Err(No::Code(0xc0));
    }
    let needed = needed(net_fn, command);
    if !context.is_in_band && needed > context.session.as_ref().map_or(0, |session| session.privilege) {
        return Err(NO_PRIVILEGE);
    }
    match net_fn {
        0x00 => on_chassis(context, command, data),
        0x04 => on_sensors(context, command, data),
        0x06 => on_application(context, command, data),
        0x0a => on_storage(context, command, data),
        0x0c => on_transport(context, command, data),
        0x2c => on_dcmi(context, command, data),
        _ => Err(INVALID_COMMAND),
    }
}

fn byte(data: &[u8], at: usize) -> Result<u8, No> {
    data.get(at).copied().ok_or(LENGTH)
}

fn word(data: &[u8], at: usize) -> Result<u16, No> {
    Ok(u16::from_le_bytes([byte(data, at)?, byte(data, at + 1)?]))
}

/// A part of something read in parts.
fn part(whole: &[u8], from: usize, count: usize) -> Result<&[u8], No> {
    let rest = whole.get(from..).ok_or(OUT_OF_RANGE)?;
    Ok(&rest[..count.min(rest.len())])
}

/// The bytes of a GUID in the order a BMC gives them.
pub(crate) fn guid(uuid: Uuid, order: GuidOrder) -> [u8; 16] {
    match order {
        GuidOrder::Rfc4122 => *uuid.as_bytes(),
        GuidOrder::Smbios => uuid.to_bytes_le(),
        GuidOrder::Ipmi => {
            let mut bytes = *uuid.as_bytes();
            bytes.reverse();
            bytes
        }
    }
}

// Application (§20, §22).

fn on_application(context: &mut Context<'_>, command: u8, data: &[u8]) -> Answer {
    match command {
        0x01 => Ok(device_id(context.state)),
        0x02 | 0x03 => {
            context.state.restart(context.now, SignedDuration::from_secs(2));
            Ok(Vec::new())
        }
        0x04 => Ok(vec![0x55, 0]),
        0x06 => Ok(Vec::new()),
        0x07 => Ok(vec![if context.chassis.power() { 0 } else { 5 }, 0]),
        0x08 | 0x37 => Ok(guid(context.state.uuid(), context.state.personality.quirks.guid).to_vec()),
        0x2f => Ok(vec![0x0c]),
        0x31 => Ok(vec![0]),
        0x38 => authentication_capabilities(context.state, data),
        0x3b => set_privilege(context, data),
        0x3c => close_session(context, data),
        0x3d => session_info(context),
        0x40 => set_channel_access(context.state, data),
        0x41 => channel_access(context.state, data),
        0x42 => channel_info(data),
        0x43 => set_user_access(context.state, data),
        0x44 => user_access(context.state, data),
        0x45 => set_user_name(context.state, data),
        0x46 => user_name(context.state, data),
        0x47 => set_user_password(context.state, data),
        0x48 => activate_payload(context, data),
        0x49 => deactivate_payload(context, data),
        0x4a => Ok(vec![1, u8::from(context.is_console_taken), 0]),
        0x4c => Ok(Vec::new()),
        0x4d => Ok(vec![0x02, 0, 0, 0]),
        0x4e => Ok(vec![0x03, 0, 0x0f, 0, 0, 0, 0, 0]),
        0x4f => Ok(vec![0x10]),
        0x54 => cipher_suites(context.state, data),
        _ => Err(INVALID_COMMAND),
    }
}

fn device_id(state: &State) -> Vec<u8> {
    let (major, minor) = state.firmware.split_once('.').unwrap_or((&state.firmware, "0"));
    let number = |text: &str| text.parse::<u8>().unwrap_or(0);
    let minor = number(minor);
    let enterprise = state.personality.enterprise.to_le_bytes();
    let mut answer = vec![0x20, 0x81, number(major) & 0x7f, ((minor / 10 % 10) << 4) | (minor % 10), 0x02];
    // Chassis, SDR repository, SEL, FRU, sensors.
    answer.push(0x8f);
    answer.extend(&enterprise[..3]);
    answer.extend([0x01, 0x00, 0, 0, 0, 0]);
    answer
}

/// The channel that is asked of; 0x0E is the one the question came by.
fn channel(number: u8) -> Result<u8, No> {
    match number & 0x0f {
        1 | 0x0e => Ok(1),
        _ => Err(INVALID_FIELD),
    }
}

fn authentication_capabilities(state: &State, data: &[u8]) -> Answer {
    let channel = channel(byte(data, 0)?)?;
    let is_v2 = byte(data, 0)? & 0x80 != 0;
    byte(data, 1)?;
    let has_users = state.users.iter().any(|user| !user.name.is_empty());
    // No authentication of IPMI 1.5 is offered; the low bits are those of 2.0.
    let status = if has_users { 0x04 } else { 0x01 };
    let extended = if is_v2 { 0x02 } else { 0 };
    Ok(vec![channel, if is_v2 { 0x80 } else { 0 }, status, extended, 0, 0, 0, 0])
}

fn cipher_suites(state: &State, data: &[u8]) -> Answer {
    let channel = channel(byte(data, 0)?)?;
    let index = usize::from(byte(data, 2)? & 0x3f);
    let suites = state.personality.suites.iter();
    let records: Vec<u8> = suites.filter_map(|id| Suite::of(*id).map(|suite| suite.record(*id))).flatten().collect();
    let mut answer = vec![channel];
    answer.extend(records.chunks(16).nth(index).unwrap_or_default());
    Ok(answer)
}

fn set_privilege(context: &mut Context<'_>, data: &[u8]) -> Answer {
    let asked = byte(data, 0)? & 0x0f;
    let session = context.session.as_mut().ok_or(NO_PRIVILEGE)?;
    match asked {
        0 => {}
        2..=4 if asked <= session.limit => session.privilege = asked,
        2..=5 => return Err(No::Code(0x81)),
        _ => return Err(INVALID_FIELD),
    }
    Ok(vec![session.privilege])
}

fn close_session(context: &mut Context<'_>, data: &[u8]) -> Answer {
    let id = u32::from_le_bytes(data.get(..4).and_then(|id| id.try_into().ok()).ok_or(LENGTH)?);
    let session = context.session.as_mut().ok_or(NO_PRIVILEGE)?;
    if id != session.id {
        return Err(No::Code(0x87));
    }
    // The table drops it once the answer is sealed.
    session.limit = 0;
    Ok(Vec::new())
}

fn session_info(context: &Context<'_>) -> Answer {
    let session = context.session.as_ref().ok_or(NO_PRIVILEGE)?;
    let limit = super::session::SESSIONS as u8;
    Ok(vec![1, limit, context.sessions, session.user, session.privilege, 0x11])
}

fn channel_access(state: &State, data: &[u8]) -> Answer {
    channel(byte(data, 0)?)?;
    // User-level authentication on, at most administrator.
    Ok(vec![if state.is_lan_closed { 0x00 } else { 0x02 }, 0x04])
}

fn set_channel_access(state: &mut State, data: &[u8]) -> Answer {
    channel(byte(data, 0)?)?;
    let mode = byte(data, 1)?;
    byte(data, 2)?;
    // Of what lasts and what is for now there is one here.
    if mode >> 6 != 0 && state.is_set() {
        state.is_lan_closed = mode & 7 == 0;
    }
    Ok(Vec::new())
}

fn channel_info(data: &[u8]) -> Answer {
    let channel = channel(byte(data, 0)?)?;
    // 802.3 LAN, IPMB-1.0 protocol, multi-session.
    Ok(vec![channel, 0x04, 0x01, 0x80, 0xf2, 0x1b, 0, 0, 0])
}

fn place(state: &State, id: u8) -> Result<&crate::state::User, No> {
    let id = usize::from(id & 0x3f);
    state.users.get(id.checked_sub(1).ok_or(INVALID_FIELD)?).ok_or(INVALID_FIELD)
}

fn set_user_access(state: &mut State, data: &[u8]) -> Answer {
    channel(byte(data, 0)?)?;
    let id = byte(data, 1)? & 0x3f;
    place(state, id)?;
    let role = match byte(data, 2)? & 0x0f {
        1 | 2 => Role::User,
        3 => Role::Operator,
        4 | 5 => Role::Administrator,
        0x0f => Role::None,
        _ => return Err(INVALID_FIELD),
    };
    let is_set = state.is_set();
    if let Some(user) = state.user_mut(id).filter(|_| is_set) {
        user.role = Some(role);
    }
    Ok(Vec::new())
}

fn user_access(state: &State, data: &[u8]) -> Answer {
    channel(byte(data, 0)?)?;
    let user = place(state, byte(data, 1)?)?;
    let enabled = state.users.iter().filter(|user| user.is_enabled).count() as u8;
    let status = if user.is_enabled { 0x40 } else { 0x80 };
    let access = user.role.map_or(0x0f, |role| 0x30 | privilege(role));
    Ok(vec![USERS as u8, status | enabled, 1, access])
}

/// Text up to its first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn set_user_name(state: &mut State, data: &[u8]) -> Answer {
    let id = byte(data, 0)? & 0x3f;
    let name = data.get(1..1 + MAX_NAME).ok_or(LENGTH)?;
    let name = String::from_utf8(text(name).to_vec()).map_err(|_| INVALID_FIELD)?;
    place(state, id)?;
    // The first place is the one without a name; two users of one name cannot be told apart.
    if id == 1 || state.user(&name).is_some_and(|(other, _)| other != id) {
        return Err(INVALID_FIELD);
    }
    let is_set = state.is_set();
    if let Some(user) = state.user_mut(id).filter(|_| is_set) {
        user.name = name;
    }
    Ok(Vec::new())
}

fn user_name(state: &State, data: &[u8]) -> Answer {
    let mut name = place(state, byte(data, 0)?)?.name.clone().into_bytes();
    name.resize(MAX_NAME, 0);
    Ok(name)
}

fn set_user_password(state: &mut State, data: &[u8]) -> Answer {
    let is_long = byte(data, 0)? & 0x80 != 0;
    let id = byte(data, 0)? & 0x3f;
    let operation = byte(data, 1)? & 0x03;
    place(state, id)?;
    if operation < 2 {
        let is_set = state.is_set();
        if let Some(user) = state.user_mut(id).filter(|_| is_set) {
            user.is_enabled = operation == 1;
        }
        return Ok(Vec::new());
    }
    let size = if is_long { MAX_PASSWORD } else { 16 };
    let password = data.get(2..).filter(|password| password.len() == size).ok_or(LENGTH)?;
    // Padding is no part of it.
    let kept = password.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let password = &password[..kept];
    if operation == 3 {
        let user = place(state, id)?;
        return match () {
            () if user.is_long != is_long => Err(No::Code(0x81)),
            () if user.password != password => Err(No::Code(0x80)),
            () => Ok(Vec::new()),
        };
    }
    match state.set_password(id, password, is_long) {
        Rotated::Said => Ok(Vec::new()),
        Rotated::Unsaid => Err(No::Silence),
    }
}

fn activate_payload(context: &mut Context<'_>, data: &[u8]) -> Answer {
    if byte(data, 0)? & 0x3f != 1 {
        return Err(No::Code(0x82));
    }
    let (is_taken, port) = (context.is_console_taken, context.port);
    let session = context.session.as_mut().ok_or(NO_PRIVILEGE)?;
    if is_taken {
        return Err(No::Code(0x80));
    }
    session.has_console = true;
    // Up to 200 bytes either way, by the port of the session.
    let [low, high] = port.to_le_bytes();
    Ok(vec![0, 0, 0, 0, 200, 0, 200, 0, low, high, 0xff, 0xff])
}

fn deactivate_payload(context: &mut Context<'_>, data: &[u8]) -> Answer {
    byte(data, 0)?;
    context.session.as_ref().ok_or(NO_PRIVILEGE)?;
    // Of whichever session has it: that is how a console is taken over (§24.2).
    if !context.is_console_taken {
        return Err(No::Code(0x80));
    }
    Ok(Vec::new())
}

// Chassis (§28).

fn on_chassis(context: &mut Context<'_>, command: u8, data: &[u8]) -> Answer {
    match command {
        0x00 => Ok(vec![0, 0x20, 0x20, 0x20, 0x20, 0x20]),
        0x01 => {
            let power = u8::from(context.chassis.power()) | (context.state.restore_policy & 3) << 5;
            let intrusion = context.state.sensors.iter().any(|sensor| {
                sensor.spec.kind == Kind::Intrusion
                    && matches!(sensor.spec.reading, Reading::Discrete(states) if states != 0)
            });
            let light = if context.state.identify(context.now).is_some() { 0x50 } else { 0x40 };
            Ok(vec![power, 0, u8::from(intrusion) | light])
        }
        0x02 => {
            let act = match byte(data, 0)? & 0x0f {
                0 => PowerAct::Off,
                1 => PowerAct::On,
                2 => PowerAct::Cycle,
                3 => PowerAct::Reset,
                4 => PowerAct::Interrupt,
                5 => PowerAct::ShutDown,
                _ => return Err(INVALID_FIELD),
            };
            match context.state.set_power(context.now, context.chassis, act) {
                Ok(()) => Ok(Vec::new()),
                Err(PowerError::IsOff) => Err(NOT_NOW),
                Err(PowerError::Failed(error)) => {
                    tracing::warn!(%error, ?act, "the machine refuses");
                    Err(UNSPECIFIED)
                }
            }
        }
        0x04 => {
            let seconds = data.first().copied().unwrap_or(15);
            let is_forced = data.get(1).is_some_and(|force| force & 1 != 0);
            let until = match (is_forced, seconds) {
                (true, _) => Some(Timestamp::MAX),
                (false, 0) => None,
                (false, seconds) => Some(context.now + SignedDuration::from_secs(seconds.into())),
            };
            context.state.set_identify(until);
            Ok(Vec::new())
        }
        0x06 => {
            match byte(data, 0)? & 7 {
                policy @ 0..=2 => context.state.restore_policy = policy,
                3 => {}
                _ => return Err(INVALID_FIELD),
            }
            Ok(vec![0x07])
        }
        0x07 => Ok(vec![1, 1]),
        0x08 => set_boot_option(context, data),
        0x09 => boot_option(context, data),
        0x0f => Ok(vec![60, 0, 0, 0, 0]),
        _ => Err(INVALID_COMMAND),
    }
}

fn set_boot_option(context: &mut Context<'_>, data: &[u8]) -> Answer {
    let parameter = byte(data, 0)? & 0x7f;
    let value = &data[1..];
    match parameter {
        0 => match byte(value, 0)? & 3 {
            1 if context.memory.in_progress[0] == 1 => return Err(No::Code(0x81)),
            state => context.memory.in_progress[0] = state,
        },
        3 => context.memory.keeps_flags = byte(value, 0)?,
        4 => context.memory.acknowledged = byte(value, 1)?,
        5 => {
            let flags: [u8; 5] = value.get(..5).and_then(|flags| flags.try_into().ok()).ok_or(LENGTH)?;
            let source = match flags[1] >> 2 & 0x0f {
                _ if flags[0] & 0x80 == 0 => None,
                0 => None,
                1 => Some(Source::Network),
                2 | 3 | 0x0b => Some(Source::Disk),
                5 | 8 => Some(Source::Cd),
                6 => Some(Source::Setup),
                _ => return Err(INVALID_FIELD),
            };
            let boot = Boot {
                source,
                uefi: source.map(|_| flags[0] & 0x20 != 0),
                is_lasting: source.is_some() && flags[0] & 0x40 != 0,
                address: None,
            };
            context.memory.flags.copy_from_slice(&flags[1..]);
            context.state.set_boot(context.chassis, boot).map_err(|error| {
                tracing::warn!(%error, "the machine refuses");
                UNSPECIFIED
            })?;
            if context.state.personality.quirks.boot_flags_lapse && context.memory.keeps_flags & 0x08 == 0 {
                context.state.let_boot_lapse(context.now);
            }
        }
        1 | 2 | 6 | 7 => {}
        _ => return Err(No::Code(0x80)),
    }
    Ok(Vec::new())
}

fn boot_option(context: &Context<'_>, data: &[u8]) -> Answer {
    let parameter = byte(data, 0)? & 0x7f;
    let memory = &context.memory;
    let value = match parameter {
        0 => vec![memory.in_progress[0]],
        1 | 2 => vec![0],
        3 => vec![memory.keeps_flags],
        4 => vec![0, memory.acknowledged],
        5 => {
            let boot = context.state.told_boot();
            let device = match boot.source {
                None => 0,
                Some(Source::Network | Source::Http) => 1,
                Some(Source::Disk) => 2,
                Some(Source::Cd) => 5,
                Some(Source::Setup) => 6,
            };
            let valid = if boot.source.is_some() { 0x80 } else { 0 };
            let lasting = if boot.is_lasting { 0x40 } else { 0 };
            let uefi = if boot.uefi == Some(true) { 0x20 } else { 0 };
            let [.., console, mux, other] = memory.flags;
            vec![valid | lasting | uefi, device << 2, console, mux, other]
        }
        6 => vec![0; 9],
        7 => vec![0; 17],
        _ => return Err(No::Code(0x80)),
    };
    Ok([vec![1, parameter], value].concat())
}

// Sensors (§35).

fn on_sensors(context: &mut Context<'_>, command: u8, data: &[u8]) -> Answer {
    if command == 0x01 {
        return Ok(vec![0x20, 0]);
    }
    let number = byte(data, 0)?;
    let is_on = context.chassis.power();
    let sensor = context.state.sensor(number).ok_or(NOT_PRESENT)?;
    match command {
        0x23 => {
            let Reading::Analog { scale, .. } = sensor.spec.reading else { return Err(INVALID_FIELD) };
            Ok([vec![byte(data, 1)?], factors(scale)].concat())
        }
        0x25 => Ok(vec![0, 0]),
        0x26 => {
            let Reading::Analog { scale, thresholds, .. } = sensor.spec.reading else { return Err(INVALID_FIELD) };
            let mask = byte(data, 1)?;
            let raw = data.get(2..8).ok_or(LENGTH)?;
            let mut lines = in_order(&thresholds);
            for (bit, line) in lines.iter_mut().enumerate().filter(|(bit, _)| mask & 1 << bit != 0) {
                if line.is_none() {
                    return Err(INVALID_FIELD);
                }
                *line = Some(scale.value(raw[bit]));
            }
            let [lower_warning, lower_critical, lower_fatal, upper_warning, upper_critical, upper_fatal] = lines;
            let to =
                Thresholds { lower_warning, lower_critical, lower_fatal, upper_warning, upper_critical, upper_fatal };
            context.state.set_thresholds(context.now, number, to);
            Ok(Vec::new())
        }
        0x27 => {
            let Reading::Analog { scale, thresholds, .. } = sensor.spec.reading else { return Err(INVALID_FIELD) };
            let lines = in_order(&thresholds);
            Ok([vec![readable(&thresholds)], lines.map(|line| line.map_or(0, |line| scale.raw(line))).to_vec()]
                .concat())
        }
        0x28 => {
            let is_scanned = byte(data, 1)? & 0x40 != 0;
            if let Some(sensor) = context.state.sensor_mut(number) {
                sensor.is_scanned = is_scanned;
            }
            Ok(Vec::new())
        }
        0x29 => {
            let [assertions, deassertions] = events(sensor);
            let [low, high] = assertions.to_le_bytes();
            let [over_low, over_high] = deassertions.to_le_bytes();
            Ok(vec![0x80 | if sensor.is_scanned { 0x40 } else { 0 }, low, high, over_low, over_high])
        }
        0x2d => {
            let flags = 0x80 | if sensor.is_scanned { 0x40 } else { 0 };
            if sensor.reads_nothing(is_on) {
                return Ok(vec![0, flags | 0x20, 0xc0]);
            }
            Ok(match sensor.spec.reading {
                Reading::Analog { value, scale, .. } => vec![scale.raw(value), flags, 0xc0 | sensor.crossed()],
                Reading::Discrete(states) => vec![0, flags, states as u8, 0x80 | (states >> 8) as u8],
            })
        }
        0x2f => Ok(vec![sensor.spec.kind.sensor_type(), reading_type(sensor)]),
        _ => Err(INVALID_COMMAND),
    }
}

fn reading_type(sensor: &Sensor) -> u8 {
    if matches!(sensor.spec.reading, Reading::Analog { .. }) { 0x01 } else { 0x6f }
}

fn readable(thresholds: &Thresholds) -> u8 {
    let lines = in_order(thresholds).into_iter().enumerate();
    lines.filter(|(_, line)| line.is_some()).fold(0, |bits, (bit, _)| bits | 1 << bit)
}

/// The events a sensor can tell: when they come, and when they are over.
fn events(sensor: &Sensor) -> [u16; 2] {
    match &sensor.spec.reading {
        Reading::Analog { thresholds, .. } => {
            // Each threshold has two bits, going low and going high; ours go one way.
            let bits = [0, 2, 4, 7, 9, 11];
            let lines = in_order(thresholds).into_iter().zip(bits);
            let mask = lines.filter(|(line, _)| line.is_some()).fold(0, |mask, (_, bit)| mask | 1 << bit);
            [mask, mask]
        }
        Reading::Discrete(_) => [0x00ff, 0x00ff],
    }
}

/// Bytes 25 to 30 of a full record: M, tolerance, B, accuracy, exponents (§43.1).
fn factors(scale: crate::personality::Scale) -> Vec<u8> {
    let ten = |value: i16| [value as u8, (value >> 8 & 3) as u8 * 0x40];
    let [m, m_high] = ten(scale.m);
    let [b, b_high] = ten(scale.b);
    vec![m, m_high, b, b_high, 0, (scale.exponent as u8) << 4 | scale.b_exponent as u8 & 0x0f]
}

// Records of the sensors (§33, §43).

/// Every record: the BMC, its FRU, and its sensors.
fn records(state: &State) -> Vec<Vec<u8>> {
    let named = |mut body: Vec<u8>, name: &str| {
        let name = &name.as_bytes()[..name.len().min(16)];
        body.push(0xc0 | name.len() as u8);
        body.extend(name);
        body
    };
    let mut bodies = vec![
        (0x12, named(vec![0x20, 0, 0, 0x8f, 0, 0, 0, 0x06, 1, 0], "BMC")),
        (0x11, named(vec![0x20, 0, 0x80, 0, 0, 0x10, 0, 0x07, 1, 0], "Builtin FRU")),
    ];
    for sensor in &state.sensors {
        let spec = &sensor.spec;
        let mut body = vec![0x20, 0, sensor.number, spec.entity.0, spec.entity.1, 0x7f];
        let [assertions, deassertions] = events(sensor);
        match &spec.reading {
            Reading::Analog { value, scale, thresholds } => {
                let lines = in_order(thresholds);
                let readable = readable(thresholds);
                body.extend([0x48 | if readable == 0 { 0 } else { 0x20 }, spec.kind.sensor_type(), 0x01]);
                // Bits 14:12 of the masks: thresholds whose status a reading tells.
                let status = |lines: u8| u16::from(lines & 7) << 12;
                body.extend((assertions | status(readable)).to_le_bytes());
                body.extend((deassertions | status(readable >> 3)).to_le_bytes());
                body.extend([readable, readable]);
                body.extend([if scale.is_signed { 0x80 } else { 0 }, spec.kind.unit(), 0, 0]);
                body.extend(factors(*scale));
                let (least, most) = if scale.is_signed { (0x80, 0x7f) } else { (0, 0xff) };
                body.extend([0x01, scale.raw(*value), most, least, most, least]);
                body.extend([5, 4, 3, 2, 1, 0].map(|bit: usize| lines[bit].map_or(0, |line| scale.raw(line))));
                body.extend([0, 0, 0, 0, 0]);
                bodies.push((0x01, named(body, &spec.name)));
            }
            Reading::Discrete(_) => {
                body.extend([0x40, spec.kind.sensor_type(), 0x6f]);
                body.extend(assertions.to_le_bytes());
                body.extend(deassertions.to_le_bytes());
                body.extend([0xff, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                bodies.push((0x02, named(body, &spec.name)));
            }
        }
    }
    let numbered = (1u16..).zip(bodies);
    numbered
        .map(|(id, (kind, body))| {
            let [low, high] = id.to_le_bytes();
            [vec![low, high, 0x51, kind, body.len() as u8], body].concat()
        })
        .collect()
}

// Storage (§31, §33, §34).

fn on_storage(context: &mut Context<'_>, command: u8, data: &[u8]) -> Answer {
    let now = context.now;
    let longest = usize::from(context.state.personality.quirks.longest_read);
    match command {
        0x10 => {
            fru_id(data)?;
            let size = u16::try_from(fru(context.state).len()).map_err(|_| UNSPECIFIED)?;
            Ok([&size.to_le_bytes()[..], &[0]].concat())
        }
        0x11 => {
            fru_id(data)?;
            let count = usize::from(byte(data, 3)?);
            if count > longest {
                return Err(TOO_MUCH);
            }
            let fru = fru(context.state);
            let read = part(&fru, word(data, 1)?.into(), count)?;
            Ok([&[read.len() as u8][..], read].concat())
        }
        0x20 => {
            let count = u16::try_from(records(context.state).len()).map_err(|_| UNSPECIFIED)?;
            let mut answer = vec![0x51];
            answer.extend(count.to_le_bytes());
            answer.extend([0xff, 0xff]);
            answer.extend([0; 8]);
            // Non-modal updates, and reservations.
            answer.push(0x22);
            Ok(answer)
        }
        0x22 => {
            context.memory.records = context.memory.records.checked_add(1).unwrap_or(1);
            Ok(context.memory.records.to_le_bytes().to_vec())
        }
        0x23 => {
            let (reservation, id) = (word(data, 0)?, word(data, 2)?);
            let (from, count) = (usize::from(byte(data, 4)?), usize::from(byte(data, 5)?));
            if from != 0 && reservation != context.memory.records {
                return Err(TIMEOUT_OF_RESERVATION);
            }
            let records = records(context.state);
            let at = match id {
                0xffff => records.len() - 1,
                id => usize::from(id.max(1)) - 1,
            };
            let record = records.get(at).ok_or(NOT_PRESENT)?;
            let count = if count == 0xff { record.len() } else { count };
            if count > longest {
                return Err(TOO_MUCH);
            }
            let next = if at + 1 < records.len() { at as u16 + 2 } else { 0xffff };
            Ok([&next.to_le_bytes()[..], part(record, from, count)?].concat())
        }
        0x28 | 0x48 => Ok(context.state.log.time(now).to_le_bytes().to_vec()),
        0x40 => {
            let log = &context.state.log;
            let count = log.records().len() as u16;
            let free = (crate::log::CAPACITY as u16 - count) * 16;
            let mut answer = vec![0x51];
            answer.extend(count.to_le_bytes());
            answer.extend(free.to_le_bytes());
            answer.extend(log.added.unwrap_or(u32::MAX).to_le_bytes());
            answer.extend(log.cleared.unwrap_or(u32::MAX).to_le_bytes());
            // Deleting and reserving are there.
            answer.push(0x0a | if log.has_overflowed { 0x80 } else { 0 });
            Ok(answer)
        }
        0x42 => Ok(context.state.log.reserve().to_le_bytes().to_vec()),
        0x43 => {
            let (reservation, id) = (word(data, 0)?, word(data, 2)?);
            let (from, count) = (usize::from(byte(data, 4)?), usize::from(byte(data, 5)?));
            let log = &context.state.log;
            if from != 0 && !log.is_reserved_by(reservation) {
                return Err(TIMEOUT_OF_RESERVATION);
            }
            let (record, next) = log.get(id).ok_or(NOT_PRESENT)?;
            Ok([&next.to_le_bytes()[..], part(&record.0, from, count)?].concat())
        }
        0x44 => {
            let record = data.try_into().map_err(|_| LENGTH)?;
            let id = context.state.log.add(now, record).ok_or(No::Code(0xc4))?;
            Ok(id.to_le_bytes().to_vec())
        }
        0x46 => {
            let (reservation, id) = (word(data, 0)?, word(data, 2)?);
            if !context.state.log.is_reserved_by(reservation) {
                return Err(TIMEOUT_OF_RESERVATION);
            }
            let found = context.state.log.get(id).ok_or(NOT_PRESENT)?.0.id();
            context.state.log.delete(found);
            Ok(found.to_le_bytes().to_vec())
        }
        0x47 => {
            if data.get(2..5).ok_or(LENGTH)? != b"CLR" {
                return Err(INVALID_FIELD);
            }
            if !context.state.log.is_reserved_by(word(data, 0)?) {
                return Err(TIMEOUT_OF_RESERVATION);
            }
            match byte(data, 5)? {
                0xaa => {
                    context.state.log.clear(now);
                    // Whoever clears asks with the same reservation whether it is done.
                    let reservation = word(data, 0)?;
                    context.state.log.keep(reservation);
                }
                0 => {}
                _ => return Err(INVALID_FIELD),
            }
            Ok(vec![1])
        }
        0x49 => {
            let time = data.get(..4).and_then(|time| time.try_into().ok()).ok_or(LENGTH)?;
            context.state.log.set_time(now, u32::from_le_bytes(time));
            Ok(Vec::new())
        }
        0x5c => Ok(vec![0, 0]),
        _ => Err(INVALID_COMMAND),
    }
}

fn fru_id(data: &[u8]) -> Result<(), No> {
    if byte(data, 0)? == 0 { Ok(()) } else { Err(NOT_PRESENT) }
}

/// The inventory of the mainboard (Platform Management FRU Information Storage Definition).
fn fru(state: &State) -> Vec<u8> {
    let field = |text: &str| {
        let text = &text.as_bytes()[..text.len().min(0x3f)];
        [&[0xc0 | text.len() as u8][..], text].concat()
    };
    let area = |head: &[u8], fields: &[&str]| {
        let mut area = [&[1, 0][..], head].concat();
        area.extend(fields.iter().flat_map(|text| field(text)));
        area.push(0xc1);
        area.resize((area.len() + 1).next_multiple_of(8), 0);
        area[1] = (area.len() / 8) as u8;
        seal(area)
    };
    let personality = &state.personality;
    let p = personality;
    // Rack mount chassis.
    let chassis = area(&[0x17], &[&p.part_number, &p.serial]);
    // English; made 13,000,000 minutes after 1996.
    let made = 13_000_000u32.to_le_bytes();
    let board = area(&[0, made[0], made[1], made[2]], &[&p.vendor, &p.model, &p.board_serial, "MB-1", ""]);
    let product = area(&[0], &[&p.vendor, &p.model, &p.part_number, "1.0", &p.serial, "", ""]);
    let at = |bytes: usize| (bytes / 8) as u8;
    let first = 8;
    let second = first + chassis.len();
    let third = second + board.len();
    let header = seal(vec![1, 0, at(first), at(second), at(third), 0, 0, 0]);
    [header, chassis, board, product].concat()
}

/// Sets the last byte so that all add up to 0.
fn seal(mut area: Vec<u8>) -> Vec<u8> {
    if let Some(last) = area.last_mut() {
        *last = 0;
    }
    let sum = area.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(last) = area.last_mut() {
        *last = sum.wrapping_neg();
    }
    area
}

// Transport (§23, §26).

fn on_transport(context: &mut Context<'_>, command: u8, data: &[u8]) -> Answer {
    match command {
        0x01 => set_lan(context, data),
        0x02 => {
            channel(byte(data, 0)?)?;
            let parameter = byte(data, 1)?;
            Ok([vec![0x11], lan(context, parameter)?].concat())
        }
        0x21 => Ok(Vec::new()),
        0x22 => {
            channel(byte(data, 0)?)?;
            let value = match byte(data, 1)? {
                0 => vec![0],
                1 => vec![1],
                2 => vec![0x82],
                3 => vec![12, 96],
                4 => vec![6, 20],
                5 | 6 => vec![0x0a],
                7 => vec![1],
                8 => vec![0x6f, 0x02],
                _ => return Err(No::Code(0x80)),
            };
            Ok([vec![0x11], value].concat())
        }
        _ => Err(INVALID_COMMAND),
    }
}

fn lan(context: &Context<'_>, parameter: u8) -> Answer {
    let lan = &context.state.lan;
    let suites = &context.state.personality.suites;
    Ok(match parameter {
        0 => vec![context.memory.in_progress[1]],
        1 => vec![0],
        2 => vec![0; 5],
        3 => lan.address.to_vec(),
        4 => vec![if lan.is_dhcp { 2 } else { 1 }],
        5 => lan.mac.to_vec(),
        6 => lan.netmask.to_vec(),
        7 => vec![0x40, 0x40, 0x10],
        10 => vec![0x02],
        11 => vec![20],
        12 => lan.gateway.to_vec(),
        13 | 15 => vec![0; 6],
        14 => vec![0; 4],
        16 => [&b"public"[..], &[0; 12]].concat(),
        17 => vec![0],
        20 => match lan.vlan {
            Some(vlan) => vec![vlan as u8, 0x80 | (vlan >> 8) as u8 & 0x0f],
            None => vec![0, 0],
        },
        21 => vec![0],
        22 => vec![suites.len() as u8],
        23 => {
            let mut list = vec![0];
            list.extend(suites);
            list.resize(17, 0);
            list
        }
        24 => {
            let mut list = vec![0];
            list.extend(
                suites
                    .iter()
                    .map(|_| 4)
                    .collect::<Vec<u8>>()
                    .chunks(2)
                    .map(|pair| pair.first().copied().unwrap_or(0) | pair.get(1).copied().unwrap_or(0) << 4),
            );
            list.resize(9, 0);
            list
        }
        _ => return Err(No::Code(0x80)),
    })
}

fn set_lan(context: &mut Context<'_>, data: &[u8]) -> Answer {
    channel(byte(data, 0)?)?;
    let parameter = byte(data, 1)?;
    let value = &data[2..];
    let four = || value.get(..4).and_then(|four| <[u8; 4]>::try_from(four).ok()).ok_or(LENGTH);
    if parameter != 0 && !context.state.is_set() {
        return Ok(Vec::new());
    }
    let lan = &mut context.state.lan;
    match parameter {
        0 => match byte(value, 0)? & 3 {
            1 if context.memory.in_progress[1] == 1 => return Err(No::Code(0x81)),
            state => context.memory.in_progress[1] = state,
        },
        3 => lan.address = four()?,
        4 => match byte(value, 0)? & 0x0f {
            1 => lan.is_dhcp = false,
            2 => lan.is_dhcp = true,
            _ => return Err(INVALID_FIELD),
        },
        6 => lan.netmask = four()?,
        12 => lan.gateway = four()?,
        20 => {
            let vlan = word(value, 0)?;
            lan.vlan = (vlan & 0x8000 != 0).then_some(vlan & 0x0fff);
        }
        1 | 2 | 7..=11 | 13..=16 | 24 => {}
        5 | 17 | 21 | 22 | 23 => return Err(No::Code(0x82)),
        _ => return Err(No::Code(0x80)),
    }
    context.state.changes += 1;
    Ok(Vec::new())
}

// DCMI 1.5 (§6).

fn on_dcmi(context: &Context<'_>, command: u8, data: &[u8]) -> Answer {
    if byte(data, 0)? != 0xdc {
        return Err(INVALID_COMMAND);
    }
    match command {
        0x01 => match byte(data, 1)? {
            // Conforms to 1.5, revision 2; power is measured.
            1 => Ok(vec![0xdc, 1, 5, 2, 0, 0x01, 0x07]),
            _ => Err(INVALID_FIELD),
        },
        0x02 => {
            let sensor = context.state.sensors.iter().find(|sensor| sensor.spec.kind == Kind::Power);
            let Some(Reading::Analog { value, .. }) = sensor.map(|sensor| &sensor.spec.reading) else {
                return Err(INVALID_COMMAND);
            };
            let is_on = context.chassis.power();
            let now = if is_on { *value as u16 } else { 0 };
            let mut answer = vec![0xdc];
            for watts in [now, now / 2, now + 40, now] {
                answer.extend(watts.to_le_bytes());
            }
            answer.extend(u32::try_from(context.now.as_second()).unwrap_or(0).to_le_bytes());
            answer.extend(1000u32.to_le_bytes());
            answer.push(if is_on { 0x40 } else { 0 });
            Ok(answer)
        }
        _ => Err(INVALID_COMMAND),
    }
}
