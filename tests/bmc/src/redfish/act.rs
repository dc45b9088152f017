//! What POST, PATCH and DELETE do.

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{Caller, Reply, Request, Service, allowed, form::Push, tree::View};
use crate::{
    chassis::{Boot, Chassis, Source},
    faults::Flashing,
    keys::{Keys, NAMES},
    personality::Role,
    state::{MAX_NAME, MAX_PASSWORD, PowerAct, PowerError, Rotated, State, User},
};

/// An answer, or nothing at all.
type Answer = Option<Reply>;

impl Service {
    /// Does what is asked, by one who is logged in. `is_there` says whether the path is a resource.
    #[expect(clippy::too_many_arguments, reason = "the parts of one request")]
    pub(super) fn act(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        caller: &Caller,
        request: &Request,
        parts: &[&str],
        is_there: bool,
    ) -> Answer {
        let mut refused =
            Reply::error(405, "OperationNotAllowed", "The HTTP method is not allowed on this resource.", &[]);
        refused.headers.push(("Allow", allowed(parts).into()));
        if request.method == Method::DELETE {
            return Some(match parts {
                _ if !is_there => Reply::not_found(&request.path),
                ["SessionService", "Sessions", id] => {
                    let is_own = |user: &str| user == caller.user || caller.role == Role::Administrator;
                    let before = self.sessions.len();
                    self.sessions.retain(|session| session.id.to_string() != **id || !is_own(&session.user));
                    if before == self.sessions.len() { Reply::forbidden() } else { Reply::empty() }
                }
                _ if caller.role < Role::Administrator => Reply::forbidden(),
                ["EventService", "Subscriptions", id] => {
                    state.subscriptions.retain(|(number, ..)| number.to_string() != **id);
                    Reply::empty()
                }
                ["Systems", _, "SecureBoot", "SecureBootDatabases", database, _, id] => {
                    if state.is_set() {
                        state.keys.remove(database, id.parse().unwrap_or_default());
                    }
                    Reply::empty()
                }
                ["AccountService", "Accounts", id] => {
                    if let Some(user) = id.parse().ok().filter(|_| state.is_set()).and_then(|id| state.user_mut(id)) {
                        *user = User::default();
                    }
                    Reply::empty()
                }
                _ => refused,
            });
        }
        if (&request.method, parts) == (&Method::POST, &["UpdateService", "update-multipart"]) {
            return Some(self.push(now, state, caller, request));
        }
        let body = if request.body.is_empty() { Ok(json!({})) } else { serde_json::from_slice(&request.body) };
        let Ok(Value::Object(mut body)) = body else { return Some(Reply::malformed()) };
        body.retain(|name, _| !name.starts_with('@'));
        if request.method == Method::PATCH {
            if !is_there {
                return Some(Reply::not_found(&request.path));
            }
            if !allowed(parts).contains("PATCH") {
                return Some(refused);
            }
            if body.is_empty() {
                let text =
                    "The request body submitted contain no data to act upon and no changes to the resource took place.";
                return Some(Reply::error(400, "NoOperation", text, &[]));
            }
            let done = match parts {
                ["AccountService", "Accounts", id] => {
                    let is_own = id.parse::<u8>().ok() == state.user(&caller.user).map(|(id, _)| id);
                    let is_password = body.keys().all(|name| name == "Password");
                    if caller.role < Role::Administrator && !(is_own && is_password) {
                        return Some(Reply::forbidden());
                    }
                    return patch_account(state, id, &body)?.map_or_else(Some, |()| {
                        Some(
                            View { now, state, is_on: chassis.power(), sessions: &self.sessions }
                                .get(parts)
                                .map_or_else(Reply::empty, Reply::ok),
                        )
                    });
                }
                _ if caller.role < Role::Operator => Err(Reply::forbidden()),
                ["Systems", _] | ["Chassis", _] => patch_machine(state, chassis, parts[0] == "Systems", &body),
                ["Systems", _, "Bios", "Settings"] => patch_bios(state, &body),
                ["Systems", _, "SecureBoot"] => match body.get("SecureBootEnable").map(Value::as_bool) {
                    Some(Some(wanted)) => {
                        if state.is_set() {
                            state.secure_boot.1 = wanted;
                        }
                        Ok(())
                    }
                    _ => Err(Reply::missing("SecureBootEnable")),
                },
                _ if caller.role < Role::Administrator => Err(Reply::forbidden()),
                _ => patch_lan(state, &body),
            };
            return Some(match done {
                Err(reply) => reply,
                Ok(()) => {
                    let view = View { now, state, is_on: chassis.power(), sessions: &self.sessions };
                    view.get(parts).map_or_else(Reply::empty, Reply::ok)
                }
            });
        }
        if request.method != Method::POST {
            return Some(refused);
        }
        Some(
            self.post(now, state, chassis, caller, parts, &body)
                .unwrap_or_else(|| if is_there { refused } else { Reply::not_found(&request.path) }),
        )
    }

    /// Takes a file of firmware.
    fn push(&self, now: Timestamp, state: &mut State, caller: &Caller, request: &Request) -> Reply {
        if caller.role < Role::Administrator {
            return Reply::forbidden();
        }
        let kind = request.content_type.as_deref().unwrap_or_default();
        let Some(Push { parameters, name, file }) = Push::read(kind, &request.body) else { return Reply::malformed() };
        if let Some(unknown) = parameters.keys().find(|name| *name != "Targets") {
            return Reply::unknown(unknown);
        }
        if file.is_empty() || state.faults.flashing == Flashing::Refused {
            let text = format!("Verification of image '{name}' failed.");
            return Reply::error(400, "VerificationFailed", &text, &[&name]);
        }
        let id = state.flash(now, &name).to_string();
        let path = format!("/redfish/v1/TaskService/Tasks/{id}");
        let view = View { now, state, is_on: false, sessions: &self.sessions };
        let body = view.get(&["TaskService", "Tasks", &id]);
        Reply { status: 202, headers: vec![("Location", path)], body, xml: None }
    }

    /// Does an action or adds a member; nothing when there is no such thing.
    fn post(
        &mut self,
        now: Timestamp,
        state: &mut State,
        chassis: &dyn Chassis,
        caller: &Caller,
        parts: &[&str],
        body: &Map<String, Value>,
    ) -> Option<Reply> {
        let ids = state.personality.ids.clone();
        let text = |name: &str| body.get(name).and_then(Value::as_str).map(String::from);
        let is_administrator = caller.role == Role::Administrator;
        let created = |sessions: &[super::Session], state: &State, parts: &[&str]| {
            let path = format!("/redfish/v1/{}", parts.join("/"));
            let body = View { now, state, is_on: false, sessions }.get(parts);
            Reply { status: 201, headers: vec![("Location", path)], body, xml: None }
        };
        Some(match parts {
            ["Systems", id, "Actions", "ComputerSystem.Reset"] if *id == ids.system => {
                if caller.role < Role::Operator {
                    return Some(Reply::forbidden());
                }
                if state.faults.no_actions {
                    return None;
                }
                let Some(kind) = text("ResetType") else { return Some(Reply::missing("ResetType")) };
                let act = match kind.as_str() {
                    "On" | "ForceOn" => PowerAct::On,
                    "ForceOff" => PowerAct::Off,
                    "GracefulShutdown" => PowerAct::ShutDown,
                    "PowerCycle" => PowerAct::Cycle,
                    "ForceRestart" | "GracefulRestart" => PowerAct::Reset,
                    "Nmi" => PowerAct::Interrupt,
                    other => return Some(Reply::value("ResetType", other)),
                };
                match state.set_power(now, chassis, act) {
                    Ok(()) => Reply::empty(),
                    Err(PowerError::IsOff) => {
                        let text = "The request failed because the system is off.";
                        Reply::error(409, "OperationFailed", text, &[])
                    }
                    Err(PowerError::Failed(error)) => Reply::error(500, "InternalError", &error, &[]),
                }
            }
            ["Systems", id, "Bios", "Actions", "Bios.ResetBios"] if *id == ids.system => {
                let attributes = state.personality.quirks.bios_attributes.clone();
                state.bios_pending = attributes.into_iter().map(|(name, value, _)| (name, value)).collect();
                Reply::empty()
            }
            ["Systems", id, "SecureBoot", "Actions", "SecureBoot.ResetKeys"] if *id == ids.system => {
                match text("ResetKeysType").as_deref() {
                    Some(reset @ ("ResetAllKeysToDefault" | "DeleteAllKeys" | "DeletePK")) => {
                        match reset {
                            _ if !state.is_set() => {}
                            "ResetAllKeysToDefault" => state.keys = Keys::factory(),
                            "DeletePK" => state.keys.clear("PK"),
                            _ => NAMES.iter().for_each(|database| state.keys.clear(database)),
                        }
                        Reply::empty()
                    }
                    Some(other) => Reply::value("ResetKeysType", other),
                    None => Reply::missing("ResetKeysType"),
                }
            }
            ["Systems", id, "SecureBoot", "SecureBootDatabases", database, kind @ ("Certificates" | "Signatures")]
                if *id == ids.system && NAMES.contains(database) =>
            {
                if !is_administrator {
                    return Some(Reply::forbidden());
                }
                let is_certificate = *kind == "Certificates";
                let name = if is_certificate { "CertificateString" } else { "SignatureString" };
                let Some(content) = text(name) else { return Some(Reply::missing(name)) };
                let signature = if is_certificate { None } else { text("SignatureType") };
                if !state.is_set() {
                    return Some(Reply::empty());
                }
                let number = state.keys.add(database, signature, content).to_string();
                created(&self.sessions, state, &[parts, &[number.as_str()]].concat())
            }
            ["Systems" | "Managers", id, "LogServices", log, "Actions", "LogService.ClearLog"] => {
                let quirks = &state.personality.quirks;
                let owner =
                    if quirks.log_under_manager { ("Managers", &ids.manager) } else { ("Systems", &ids.system) };
                if (parts[0], *id) != (owner.0, owner.1.as_str()) || *log != quirks.log {
                    return None;
                }
                if caller.role < Role::Operator {
                    return Some(Reply::forbidden());
                }
                state.log.clear(now);
                Reply::empty()
            }
            ["Managers", id, "Actions", "Manager.Reset"] if *id == ids.manager => {
                if !is_administrator {
                    return Some(Reply::forbidden());
                }
                state.restart(now, SignedDuration::from_secs(2));
                Reply::empty()
            }
            ["Managers", id, "VirtualMedia", "CD1", "Actions", action] if *id == ids.manager => match *action {
                "VirtualMedia.InsertMedia" => {
                    let Some(image) = text("Image") else { return Some(Reply::missing("Image")) };
                    if state.media.is_some() {
                        let text = "The resource is in use.";
                        return Some(Reply::error(409, "ResourceInUse", text, &[]));
                    }
                    state.media = Some(image);
                    Reply::empty()
                }
                "VirtualMedia.EjectMedia" => {
                    state.media = None;
                    Reply::empty()
                }
                _ => return None,
            },
            ["UpdateService", "Actions", "UpdateService.SimpleUpdate"] => {
                if !is_administrator {
                    return Some(Reply::forbidden());
                }
                let Some(image) = text("ImageURI") else { return Some(Reply::missing("ImageURI")) };
                let id = state.flash(now, &image).to_string();
                let task = ["TaskService", "Tasks", &id];
                Reply { status: 202, ..created(&self.sessions, state, &task) }
            }
            ["EventService", "Subscriptions"] => {
                if !is_administrator {
                    return Some(Reply::forbidden());
                }
                let Some(destination) = text("Destination") else { return Some(Reply::missing("Destination")) };
                if text("Protocol").is_some_and(|protocol| protocol != "Redfish") {
                    return Some(Reply::value("Protocol", &text("Protocol").unwrap_or_default()));
                }
                if !destination.starts_with("http://") && !destination.starts_with("https://") {
                    return Some(Reply::value("Destination", &destination));
                }
                let last = state.subscriptions.iter().map(|(id, ..)| *id).max().unwrap_or(0);
                state.subscriptions.push((last + 1, destination, text("Context").unwrap_or_default()));
                created(&self.sessions, state, &["EventService", "Subscriptions", &(last + 1).to_string()])
            }
            ["AccountService", "Accounts"] => {
                if !is_administrator {
                    return Some(Reply::forbidden());
                }
                let Some(name) = text("UserName") else { return Some(Reply::missing("UserName")) };
                let Some(password) = text("Password") else { return Some(Reply::missing("Password")) };
                let Some(role) = text("RoleId").as_deref().and_then(role) else {
                    return Some(Reply::missing("RoleId"));
                };
                if let Some(refused) = bad_password(&password) {
                    return Some(refused);
                }
                if name.is_empty() || name.len() > MAX_NAME || state.user(&name).is_some() {
                    return Some(Reply::value("UserName", &name));
                }
                // The first place is IPMI's user without a name.
                let Some(at) = state.users.iter().skip(1).position(|user| user.name.is_empty()) else {
                    let text = "The limit of accounts is reached.";
                    return Some(Reply::error(400, "CreateLimitReachedForResource", text, &[]));
                };
                let is_long = password.len() > 16;
                state.users[at + 1] =
                    User { name, password: password.into_bytes(), is_long, is_enabled: true, role: Some(role) };
                created(&self.sessions, state, &["AccountService", "Accounts", &(at + 2).to_string()])
            }
            _ => return None,
        })
    }
}

fn role(id: &str) -> Option<Role> {
    match id {
        "ReadOnly" => Some(Role::User),
        "Operator" => Some(Role::Operator),
        "Administrator" => Some(Role::Administrator),
        _ => None,
    }
}

fn bad_password(password: &str) -> Option<Reply> {
    (password.is_empty() || password.len() > MAX_PASSWORD).then(|| {
        let text =
            "The value provided for the property Password is of a different format than the property can accept.";
        Reply::error(400, "PropertyValueFormatError", text, &["", "Password"])
    })
}

/// Changes an account; nothing when the change of a password is not to be answered.
fn patch_account(state: &mut State, id: &str, body: &Map<String, Value>) -> Option<Result<(), Reply>> {
    let Ok(id) = id.parse::<u8>() else { return Some(Err(Reply::not_found(id))) };
    for (name, value) in body {
        let refused = match (name.as_str(), value) {
            ("Password", Value::String(password)) => bad_password(password),
            ("Enabled", Value::Bool(_)) => None,
            ("RoleId", Value::String(wanted)) if role(wanted).is_some() => None,
            ("UserName", Value::String(wanted)) if !wanted.is_empty() && wanted.len() <= MAX_NAME => None,
            ("Password" | "Enabled" | "RoleId" | "UserName", value) => Some(Reply::value(name, &value.to_string())),
            ("Id" | "Name" | "Links" | "Locked", _) => Some(Reply::read_only(name)),
            _ => Some(Reply::unknown(name)),
        };
        if let Some(refused) = refused {
            return Some(Err(refused));
        }
    }
    let is_set = body.keys().all(|name| name == "Password") || state.is_set();
    if let Some(user) = state.user_mut(id).filter(|_| is_set) {
        if let Some(enabled) = body.get("Enabled").and_then(Value::as_bool) {
            user.is_enabled = enabled;
        }
        if let Some(wanted) = body.get("RoleId").and_then(Value::as_str).and_then(role) {
            user.role = Some(wanted);
        }
        if let Some(name) = body.get("UserName").and_then(Value::as_str) {
            user.name = name.to_owned();
        }
    }
    if let Some(password) = body.get("Password").and_then(Value::as_str) {
        let is_long = password.len() > 16;
        if state.set_password(id, password.as_bytes(), is_long) == Rotated::Unsaid {
            return None;
        }
    }
    Some(Ok(()))
}

fn patch_machine(
    state: &mut State,
    chassis: &dyn Chassis,
    is_system: bool,
    body: &Map<String, Value>,
) -> Result<(), Reply> {
    for (name, value) in body {
        match (name.as_str(), value) {
            ("Boot", Value::Object(wanted)) if is_system => patch_boot(state, chassis, wanted)?,
            ("LocationIndicatorActive", Value::Bool(lit)) => state.set_identify(lit.then_some(Timestamp::MAX)),
            ("IndicatorLED", Value::String(led)) => {
                state.set_identify((led != "Off").then_some(Timestamp::MAX));
            }
            ("PowerRestorePolicy", Value::String(policy)) if is_system => {
                state.restore_policy = match policy.as_str() {
                    "AlwaysOff" => 0,
                    "LastState" => 1,
                    "AlwaysOn" => 2,
                    _ => return Err(Reply::value(name, policy)),
                };
            }
            ("Boot" | "LocationIndicatorActive" | "IndicatorLED" | "PowerRestorePolicy", value) => {
                return Err(Reply::value(name, &value.to_string()));
            }
            ("Id" | "Name" | "PowerState" | "UUID" | "SerialNumber" | "Model" | "Manufacturer" | "Status", _) => {
                return Err(Reply::read_only(name));
            }
            _ => return Err(Reply::unknown(name)),
        }
    }
    Ok(())
}

fn patch_boot(state: &mut State, chassis: &dyn Chassis, wanted: &Map<String, Value>) -> Result<(), Reply> {
    let mut boot = state.boot.clone();
    for (name, value) in wanted {
        let text = value.as_str();
        match (name.as_str(), text) {
            ("BootSourceOverrideTarget", Some(target)) => {
                boot.source = match target {
                    "None" => None,
                    "Pxe" => Some(Source::Network),
                    "UefiHttp" => Some(Source::Http),
                    "Hdd" => Some(Source::Disk),
                    "Cd" => Some(Source::Cd),
                    "BiosSetup" => Some(Source::Setup),
                    other => return Err(Reply::value(name, other)),
                };
            }
            ("BootSourceOverrideEnabled", Some(enabled)) => match enabled {
                "Once" => boot.is_lasting = false,
                "Continuous" => boot.is_lasting = true,
                "Disabled" => {}
                other => return Err(Reply::value(name, other)),
            },
            ("BootSourceOverrideMode", Some(mode)) => match mode {
                "UEFI" => boot.uefi = Some(true),
                "Legacy" => boot.uefi = Some(false),
                other => return Err(Reply::value(name, other)),
            },
            ("HttpBootUri", _) => boot.address = text.map(String::from),
            ("BootSourceOverrideTarget" | "BootSourceOverrideEnabled" | "BootSourceOverrideMode", None) => {
                return Err(Reply::value(name, &value.to_string()));
            }
            _ => return Err(Reply::unknown(name)),
        }
    }
    let is_disabled = wanted.get("BootSourceOverrideEnabled").and_then(Value::as_str) == Some("Disabled");
    if is_disabled || boot.source.is_none() {
        boot = Boot::default();
    }
    state.set_boot(chassis, boot).map_err(|error| Reply::error(500, "InternalError", &error, &[]))
}

fn patch_bios(state: &mut State, body: &Map<String, Value>) -> Result<(), Reply> {
    let Some(Value::Object(attributes)) = body.get("Attributes") else { return Err(Reply::missing("Attributes")) };
    for (name, value) in attributes {
        let known = state.personality.quirks.bios_attributes.iter().find(|(known, ..)| known == name);
        let Some((.., values)) = known else { return Err(Reply::unknown(name)) };
        let wanted = value.as_str().filter(|wanted| values.iter().any(|value| value == wanted));
        let Some(wanted) = wanted else { return Err(Reply::value(name, &value.to_string())) };
        if state.is_set() {
            state.bios_pending.insert(name.clone(), wanted.to_owned());
        }
    }
    Ok(())
}

fn patch_lan(state: &mut State, body: &Map<String, Value>) -> Result<(), Reply> {
    for (name, value) in body {
        if !state.is_set() {
            continue;
        }
        match name.as_str() {
            "HostName" => state.host_name = value.as_str().ok_or_else(|| Reply::value(name, "?"))?.to_owned(),
            "DHCPv4" => {
                let enabled = value["DHCPEnabled"].as_bool();
                state.lan.is_dhcp = enabled.ok_or_else(|| Reply::missing("DHCPv4/DHCPEnabled"))?;
            }
            "VLAN" => {
                let id = value["VLANId"].as_u64().and_then(|id| u16::try_from(id).ok());
                let is_wanted = value["VLANEnable"].as_bool().unwrap_or(state.lan.vlan.is_some());
                state.lan.vlan = is_wanted.then_some(id.or(state.lan.vlan).unwrap_or(0));
            }
            "IPv4StaticAddresses" | "IPv4Addresses" => {
                let part = |part: &str| {
                    let address = value[0][part].as_str()?.parse::<std::net::Ipv4Addr>().ok()?;
                    Some(address.octets())
                };
                state.lan.address = part("Address").ok_or_else(|| Reply::missing("Address"))?;
                state.lan.netmask = part("SubnetMask").unwrap_or(state.lan.netmask);
                state.lan.gateway = part("Gateway").unwrap_or(state.lan.gateway);
            }
            _ => return Err(Reply::unknown(name)),
        }
    }
    Ok(())
}
