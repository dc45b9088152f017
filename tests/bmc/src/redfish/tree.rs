//! What a GET shows: every resource as JSON (DSP0268), from the state.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Session, deliver};
use crate::{
    chassis::Source,
    faults::Flashing,
    keys::NAMES,
    log::Record,
    personality::{Kind, Personality, Reading, Role, ThermalSchema},
    sensor::{Health, Sensor, in_order},
    state::State,
};

/// What the tree is made from.
pub(crate) struct View<'a> {
    pub(crate) now: Timestamp,
    pub(crate) state: &'a State,
    pub(crate) is_on: bool,
    pub(crate) sessions: &'a [Session],
}

const ROOT: &str = "/redfish/v1";

/// A resource's common members and its own.
fn resource(path: &str, kind: &str, id: &str, name: &str, own: Value) -> Value {
    let mut all = Map::new();
    all.insert("@odata.id".into(), json!(path));
    all.insert("@odata.type".into(), json!(format!("#{kind}")));
    all.insert("Id".into(), json!(id));
    all.insert("Name".into(), json!(name));
    if let Value::Object(own) = own {
        all.extend(own);
    }
    Value::Object(all)
}

fn link(path: impl Into<String>) -> Value {
    json!({ "@odata.id": path.into() })
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "OK",
        Health::Warning => "Warning",
        Health::Critical => "Critical",
    }
}

/// A role's name.
pub(crate) fn role_id(role: Role) -> &'static str {
    match role {
        Role::None | Role::User => "ReadOnly",
        Role::Operator => "Operator",
        Role::Administrator => "Administrator",
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02X}")).join(":")
}

fn dotted(address: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

/// A name as it can stand in a path.
fn slug(name: &str) -> String {
    name.replace(' ', "")
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

impl View<'_> {
    fn personality(&self) -> &Personality {
        &self.state.personality
    }

    fn system(&self) -> String {
        format!("{ROOT}/Systems/{}", self.personality().ids.system)
    }

    fn chassis(&self) -> String {
        format!("{ROOT}/Chassis/{}", self.personality().ids.chassis)
    }

    fn manager(&self) -> String {
        format!("{ROOT}/Managers/{}", self.personality().ids.manager)
    }

    fn collection(&self, path: &str, kind: &str, members: impl IntoIterator<Item = String>) -> Value {
        let mut members: Vec<_> = members.into_iter().map(|id| link(format!("{path}/{id}"))).collect();
        if self.state.faults.dangling_links {
            members.push(link(format!("{path}/Gone")));
        }
        json!({
            "@odata.id": path,
            "@odata.type": format!("#{kind}Collection.{kind}Collection"),
            "Name": format!("{kind} Collection"),
            "Members@odata.count": members.len(),
            "Members": members,
        })
    }

    /// The resource of a path whose parts after `/redfish/v1` these are.
    pub(crate) fn get(&self, parts: &[&str]) -> Option<Value> {
        let ids = &self.personality().ids;
        let path = [&[ROOT], parts].concat().join("/");
        let mut found = match parts {
            [] => Some(self.root()),
            ["Systems"] => Some(self.collection(&path, "ComputerSystem", [ids.system.clone()])),
            ["Chassis"] => Some(self.collection(&path, "Chassis", [ids.chassis.clone()])),
            ["Managers"] => Some(self.collection(&path, "Manager", [ids.manager.clone()])),
            ["Systems", id, rest @ ..] if *id == ids.system => self.in_system(&path, rest),
            ["Chassis", id, rest @ ..] if *id == ids.chassis => self.in_chassis(&path, rest),
            ["Managers", id, rest @ ..] if *id == ids.manager => self.in_manager(&path, rest),
            ["SessionService"] => Some(resource(
                &path,
                "SessionService.v1_1_8.SessionService",
                "SessionService",
                "Session Service",
                json!({ "ServiceEnabled": true, "SessionTimeout": super::IDLE.as_secs(), "Sessions": link(format!("{path}/Sessions")) }),
            )),
            ["SessionService", "Sessions"] => {
                Some(self.collection(&path, "Session", self.sessions.iter().map(|session| session.id.to_string())))
            }
            ["SessionService", "Sessions", id] => {
                let session = self.sessions.iter().find(|session| session.id.to_string() == *id)?;
                let own = json!({ "UserName": session.user, "Password": null });
                Some(resource(&path, "Session.v1_6_0.Session", id, "User Session", own))
            }
            ["AccountService", rest @ ..] => self.accounts(&path, rest),
            ["UpdateService", rest @ ..] => self.updates(&path, rest),
            ["TaskService", rest @ ..] => self.tasks(&path, rest),
            ["EventService", rest @ ..] => self.events(&path, rest),
            _ => None,
        }?;
        if self.state.faults.malformed_members {
            malform(&mut found);
        }
        Some(found)
    }

    fn root(&self) -> Value {
        resource(
            &format!("{ROOT}/"),
            "ServiceRoot.v1_15_0.ServiceRoot",
            "RootService",
            "Root Service",
            json!({
                "RedfishVersion": "1.17.0",
                "UUID": self.personality().uuid,
                "Vendor": self.personality().vendor,
                "Product": self.personality().manager,
                "ProtocolFeaturesSupported": {
                    "ExpandQuery": { "ExpandAll": false, "Levels": false, "Links": false, "NoLinks": false },
                    "SelectQuery": false, "FilterQuery": false, "OnlyMemberQuery": false, "ExcerptQuery": false,
                },
                "Systems": link(format!("{ROOT}/Systems")),
                "Chassis": link(format!("{ROOT}/Chassis")),
                "Managers": link(format!("{ROOT}/Managers")),
                "SessionService": link(format!("{ROOT}/SessionService")),
                "AccountService": link(format!("{ROOT}/AccountService")),
                "UpdateService": link(format!("{ROOT}/UpdateService")),
                "EventService": link(format!("{ROOT}/EventService")),
                "Tasks": link(format!("{ROOT}/TaskService")),
                "Links": { "Sessions": link(format!("{ROOT}/SessionService/Sessions")) },
            }),
        )
    }

    fn in_system(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let personality = self.personality();
        let state = self.state;
        let id = &personality.ids.system;
        Some(match rest {
            [] => self.computer(path, id),
            ["Processors"] => self.collection(path, "Processor", ["CPU1".into(), "CPU2".into()]),
            ["Processors", id @ ("CPU1" | "CPU2")] => resource(
                path,
                "Processor.v1_18_0.Processor",
                id,
                "Processor",
                json!({
                    "Socket": id, "ProcessorType": "CPU", "ProcessorArchitecture": "x86", "InstructionSet": "x86-64",
                    "Manufacturer": "Cpuco", "Model": "Xe 6330", "TotalCores": 28, "TotalThreads": 56, "MaxSpeedMHz": 3100,
                    "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["Memory"] => self.collection(path, "Memory", personality.dimms.iter().map(|dimm| slug(&dimm.slot))),
            ["Memory", id] => {
                let dimm = personality.dimms.iter().find(|dimm| slug(&dimm.slot) == *id)?;
                let own = json!({
                    "MemoryType": "DRAM", "MemoryDeviceType": "DDR4", "CapacityMiB": dimm.mebibytes,
                    "DeviceLocator": dimm.slot, "Manufacturer": dimm.vendor, "PartNumber": dimm.part_number,
                    "SerialNumber": dimm.serial, "OperatingSpeedMhz": 3200, "ErrorCorrection": "MultiBitECC",
                    "Status": { "State": "Enabled", "Health": "OK" },
                });
                resource(path, "Memory.v1_17_0.Memory", id, &dimm.slot, own)
            }
            ["Storage"] => self.collection(path, "Storage", ["1".into()]),
            ["Storage", "1"] => {
                let drives =
                    personality.drives.iter().map(|drive| link(format!("{path}/Drives/{}", slug(&drive.name))));
                let drives: Vec<_> = drives.collect();
                let own = json!({
                    "Drives@odata.count": drives.len(), "Drives": drives,
                    "Status": { "State": "Enabled", "Health": "OK" },
                });
                resource(path, "Storage.v1_15_0.Storage", "1", "Storage", own)
            }
            ["Storage", "1", "Drives", id] => {
                let drive = personality.drives.iter().find(|drive| slug(&drive.name) == *id)?;
                let own = json!({
                    "Manufacturer": drive.vendor, "Model": drive.model, "SerialNumber": drive.serial,
                    "Revision": drive.firmware, "CapacityBytes": drive.bytes, "MediaType": "SSD",
                    "Protocol": if drive.is_nvme { "NVMe" } else { "SATA" },
                    "FailurePredicted": false, "PredictedMediaLifeLeftPercent": 98,
                    "Status": { "State": "Enabled", "Health": "OK" },
                });
                resource(path, "Drive.v1_17_0.Drive", id, &drive.name, own)
            }
            ["EthernetInterfaces"] => {
                self.collection(path, "EthernetInterface", personality.nics.iter().map(|nic| slug(&nic.name)))
            }
            ["EthernetInterfaces", id] => {
                let nic = personality.nics.iter().find(|nic| slug(&nic.name) == *id)?;
                let own = json!({
                    "MACAddress": mac(nic.mac), "PermanentMACAddress": mac(nic.mac), "SpeedMbps": nic.speed,
                    "LinkStatus": if self.is_on { "LinkUp" } else { "LinkDown" }, "InterfaceEnabled": true,
                    "Status": { "State": "Enabled", "Health": "OK" },
                });
                resource(path, "EthernetInterface.v1_9_0.EthernetInterface", id, &nic.name, own)
            }
            ["LogServices", rest @ ..] if !personality.quirks.log_under_manager => return self.log(path, rest),
            ["Bios"] => resource(
                path,
                "Bios.v1_2_1.Bios",
                "Bios",
                "BIOS Configuration",
                json!({
                    "Attributes": state.bios,
                    "@Redfish.Settings": {
                        "@odata.type": "#Settings.v1_3_5.Settings",
                        "SettingsObject": link(format!("{path}/Settings")),
                        "SupportedApplyTimes": ["OnReset"],
                    },
                    "Actions": { "#Bios.ResetBios": { "target": format!("{path}/Actions/Bios.ResetBios") } },
                }),
            ),
            ["Bios", "Settings"] => resource(
                path,
                "Bios.v1_2_1.Bios",
                "Settings",
                "BIOS Configuration at the next start",
                json!({ "Attributes": state.bios_pending }),
            ),
            ["SecureBoot"] => resource(
                path,
                "SecureBoot.v1_1_1.SecureBoot",
                "SecureBoot",
                "UEFI Secure Boot",
                json!({
                    "SecureBootEnable": state.secure_boot.1,
                    "SecureBootCurrentBoot": if state.secure_boot.0 { "Enabled" } else { "Disabled" },
                    "SecureBootMode": if state.keys.of("PK").next().is_some() { "UserMode" } else { "SetupMode" },
                    "SecureBootDatabases": link(format!("{path}/SecureBootDatabases")),
                    "Actions": { "#SecureBoot.ResetKeys": {
                        "target": format!("{path}/Actions/SecureBoot.ResetKeys"),
                        "ResetKeysType@Redfish.AllowableValues": ["ResetAllKeysToDefault", "DeleteAllKeys", "DeletePK"],
                    } },
                }),
            ),
            ["SecureBoot", "SecureBootDatabases", rest @ ..] => return self.key_databases(path, rest),
            _ => return None,
        })
    }

    fn key_databases(&self, path: &str, parts: &[&str]) -> Option<Value> {
        let keys = &self.state.keys;
        let entries = |database: &'_ str, kind: &str| -> Vec<_> {
            keys.of(database).filter(|key| key.signature.is_some() == (kind == "Signatures")).cloned().collect()
        };
        Some(match parts {
            [] => self.collection(path, "SecureBootDatabase", NAMES.map(String::from)),
            [database, rest @ ..] if NAMES.contains(database) => match rest {
                [] => {
                    let own = json!({
                        "DatabaseId": database,
                        "Certificates": link(format!("{path}/Certificates")),
                        "Signatures": link(format!("{path}/Signatures")),
                    });
                    resource(path, "SecureBootDatabase.v1_0_3.SecureBootDatabase", database, "Keys", own)
                }
                ["Certificates"] => {
                    let ids = entries(database, "Certificates").into_iter().map(|key| key.id.to_string());
                    self.collection(path, "Certificate", ids)
                }
                ["Signatures"] => {
                    let ids = entries(database, "Signatures").into_iter().map(|key| key.id.to_string());
                    self.collection(path, "Signature", ids)
                }
                [kind @ ("Certificates" | "Signatures"), id] => {
                    let key = entries(database, kind).into_iter().find(|key| key.id.to_string() == *id)?;
                    match key.signature {
                        None => {
                            let own = json!({ "CertificateString": key.content, "CertificateType": "PEM" });
                            resource(path, "Certificate.v1_8_2.Certificate", id, "Certificate", own)
                        }
                        Some(kind) => {
                            let own = json!({
                                "SignatureString": key.content, "SignatureType": kind, "SignatureTypeRegistry": "UEFI",
                            });
                            resource(path, "Signature.v1_0_3.Signature", id, "Signature", own)
                        }
                    }
                }
                _ => return None,
            },
            _ => return None,
        })
    }

    fn computer(&self, path: &str, id: &str) -> Value {
        let (personality, state) = (self.personality(), self.state);
        let boot = state.told_boot();
        let target = match boot.source {
            None => "None",
            Some(Source::Network) => "Pxe",
            Some(Source::Http) => "UefiHttp",
            Some(Source::Disk) => "Hdd",
            Some(Source::Cd) => "Cd",
            Some(Source::Setup) => "BiosSetup",
        };
        let enabled = match (boot.source, boot.is_lasting) {
            (None, _) => "Disabled",
            (_, false) => "Once",
            (_, true) => "Continuous",
        };
        let mode = if boot.uefi == Some(false) { "Legacy" } else { "UEFI" };
        let memory: u64 = personality.dimms.iter().map(|dimm| dimm.mebibytes).sum();
        let worst = state.sensors.iter().filter(|sensor| !sensor.reads_nothing(self.is_on)).map(Sensor::health).max();
        let worst = health(worst.unwrap_or(Health::Ok));
        let mut own = json!({
            "SystemType": "Physical",
            "Manufacturer": personality.vendor, "Model": personality.model, "SerialNumber": personality.serial,
            "SKU": personality.part_number, "PartNumber": personality.part_number,
            "UUID": state.uuid(), "HostName": "", "BiosVersion": personality.bios,
            "PowerState": if self.is_on { "On" } else { "Off" },
            "LocationIndicatorActive": state.identify(self.now).is_some(),
            "IndicatorLED": if state.identify(self.now).is_some() { "Blinking" } else { "Off" },
            "PowerRestorePolicy": match state.restore_policy { 0 => "AlwaysOff", 2 => "AlwaysOn", _ => "LastState" },
            "Status": { "State": if self.is_on { "Enabled" } else { "Disabled" }, "Health": worst, "HealthRollup": worst },
            "Boot": {
                "BootSourceOverrideEnabled": enabled,
                "BootSourceOverrideTarget": target,
                "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "UefiHttp", "Hdd", "Cd", "BiosSetup"],
                "BootSourceOverrideMode": mode,
                "HttpBootUri": boot.address,
            },
            "ProcessorSummary": { "Count": 2, "CoreCount": 56, "LogicalProcessorCount": 112, "Model": "Xe 6330", "Status": { "State": "Enabled", "Health": "OK", "HealthRollup": "OK" } },
            "MemorySummary": { "TotalSystemMemoryGiB": memory / 1024, "Status": { "State": "Enabled", "Health": "OK", "HealthRollup": "OK" } },
            "Processors": link(format!("{path}/Processors")),
            "Memory": link(format!("{path}/Memory")),
            "Storage": link(format!("{path}/Storage")),
            "EthernetInterfaces": link(format!("{path}/EthernetInterfaces")),
            "Bios": link(format!("{path}/Bios")),
            "SecureBoot": link(format!("{path}/SecureBoot")),
            "Links": { "Chassis": [link(self.chassis())], "ManagedBy": [link(self.manager())] },
        });
        if !personality.quirks.log_under_manager {
            own["LogServices"] = link(format!("{path}/LogServices"));
        }
        if !state.faults.no_actions {
            own["Actions"] = json!({ "#ComputerSystem.Reset": {
                "target": format!("{path}/Actions/ComputerSystem.Reset"),
                "ResetType@Redfish.AllowableValues":
                    ["On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "PowerCycle", "Nmi"],
            } });
        }
        resource(path, "ComputerSystem.v1_20_0.ComputerSystem", id, "System", own)
    }

    fn of_kinds<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = &'a Sensor> {
        self.state.sensors.iter().filter(|sensor| kinds.contains(&sensor.spec.kind))
    }

    fn status(&self, sensor: &Sensor) -> Value {
        if sensor.reads_nothing(self.is_on) {
            json!({ "State": "UnavailableOffline" })
        } else {
            json!({ "State": "Enabled", "Health": health(sensor.health()) })
        }
    }

    /// What an analog sensor reads.
    fn value(&self, sensor: &Sensor) -> Value {
        match sensor.spec.reading {
            Reading::Analog { value, .. } if !sensor.reads_nothing(self.is_on) => json!(rounded(value)),
            _ => Value::Null,
        }
    }

    fn in_chassis(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let personality = self.personality();
        let thermal = personality.thermal;
        let (is_old, is_new) = (thermal != ThermalSchema::New, thermal != ThermalSchema::Old);
        let analog = [Kind::Temperature, Kind::Fan, Kind::Voltage, Kind::Current, Kind::Power];
        Some(match rest {
            [] => {
                let intrusion = self.of_kinds(&[Kind::Intrusion]).any(|sensor| sensor.health() != Health::Ok);
                let mut own = json!({
                    "ChassisType": "RackMount", "Manufacturer": personality.vendor, "Model": personality.model,
                    "SerialNumber": personality.serial, "PartNumber": personality.part_number,
                    "PowerState": if self.is_on { "On" } else { "Off" },
                    "LocationIndicatorActive": self.state.identify(self.now).is_some(),
                    "PhysicalSecurity": { "IntrusionSensor": if intrusion { "HardwareIntrusion" } else { "Normal" }, "IntrusionSensorNumber": 1, "IntrusionSensorReArm": "Automatic" },
                    "Status": { "State": "Enabled", "Health": "OK" },
                    "Links": { "ComputerSystems": [link(self.system())], "ManagedBy": [link(self.manager())] },
                });
                if is_old {
                    own["Thermal"] = link(format!("{path}/Thermal"));
                    own["Power"] = link(format!("{path}/Power"));
                }
                if is_new {
                    own["ThermalSubsystem"] = link(format!("{path}/ThermalSubsystem"));
                    own["PowerSubsystem"] = link(format!("{path}/PowerSubsystem"));
                    own["Sensors"] = link(format!("{path}/Sensors"));
                }
                resource(path, "Chassis.v1_23_0.Chassis", &personality.ids.chassis, "Chassis", own)
            }
            ["Thermal"] if is_old => {
                let member = |(at, sensor): (usize, &Sensor), list: &str, reading: &str| {
                    let Reading::Analog { thresholds, .. } = &sensor.spec.reading else { return Value::Null };
                    let [lnc, lc, lf, unc, uc, uf] = in_order(thresholds);
                    json!({
                        "@odata.id": format!("{path}#/{list}/{at}"), "MemberId": at.to_string(), "Name": sensor.spec.name,
                        reading: self.value(sensor), "Status": self.status(sensor), "SensorNumber": sensor.number,
                        "LowerThresholdNonCritical": lnc, "LowerThresholdCritical": lc, "LowerThresholdFatal": lf,
                        "UpperThresholdNonCritical": unc, "UpperThresholdCritical": uc, "UpperThresholdFatal": uf,
                        "PhysicalContext": match sensor.spec.entity.0 { 3 => "CPU", 0x37 => "Intake", _ => "Fan" },
                    })
                };
                let temperatures = self.of_kinds(&[Kind::Temperature]).enumerate();
                let temperatures: Vec<_> =
                    temperatures.map(|it| member(it, "Temperatures", "ReadingCelsius")).collect();
                let fans = self.of_kinds(&[Kind::Fan]).enumerate();
                let fans: Vec<_> = fans
                    .map(|it| {
                        let mut fan = member(it, "Fans", "Reading");
                        fan["ReadingUnits"] = json!("RPM");
                        // Whole numbers here, and decimal ones of temperatures (Thermal 1.7.1, Fan).
                        for bound in
                            fan.as_object_mut().into_iter().flatten().filter(|(name, _)| name.contains("Threshold"))
                        {
                            *bound.1 = bound.1.as_f64().map_or(Value::Null, |bound| json!(bound.round() as i64));
                        }
                        fan
                    })
                    .collect();
                let own = json!({ "Temperatures": temperatures, "Fans": fans });
                resource(path, "Thermal.v1_7_1.Thermal", "Thermal", "Thermal", own)
            }
            ["Power"] if is_old => {
                let control = self.of_kinds(&[Kind::Power]).enumerate();
                let control: Vec<_> = control
                    .map(|(at, sensor)| json!({
                        "@odata.id": format!("{path}#/PowerControl/{at}"), "MemberId": at.to_string(), "Name": sensor.spec.name,
                        "PowerConsumedWatts": self.value(sensor), "Status": self.status(sensor),
                    }))
                    .collect();
                let voltages = self.of_kinds(&[Kind::Voltage]).enumerate();
                let voltages: Vec<_> = voltages
                    .map(|(at, sensor)| {
                        let Reading::Analog { thresholds, .. } = &sensor.spec.reading else { return Value::Null };
                        let [lnc, lc, lf, unc, uc, uf] = in_order(thresholds);
                        json!({
                            "@odata.id": format!("{path}#/Voltages/{at}"), "MemberId": at.to_string(), "Name": sensor.spec.name,
                            "ReadingVolts": self.value(sensor), "Status": self.status(sensor), "SensorNumber": sensor.number,
                            "LowerThresholdNonCritical": lnc, "LowerThresholdCritical": lc, "LowerThresholdFatal": lf,
                            "UpperThresholdNonCritical": unc, "UpperThresholdCritical": uc, "UpperThresholdFatal": uf,
                        })
                    })
                    .collect();
                let supplies = self.of_kinds(&[Kind::PowerSupply]).enumerate();
                let supplies: Vec<_> = supplies
                    .map(|(at, sensor)| {
                        json!({
                            "@odata.id": format!("{path}#/PowerSupplies/{at}"), "MemberId": at.to_string(),
                            "Name": format!("PSU {}", at + 1), "Model": "P800", "Manufacturer": "Powerco",
                            "SerialNumber": format!("PS{}{at}", personality.serial), "PowerCapacityWatts": 800,
                            "PowerSupplyType": "AC", "Status": self.status(sensor),
                        })
                    })
                    .collect();
                let own = json!({ "PowerControl": control, "Voltages": voltages, "PowerSupplies": supplies });
                resource(path, "Power.v1_7_1.Power", "Power", "Power", own)
            }
            ["Sensors"] if is_new => {
                self.collection(path, "Sensor", self.of_kinds(&analog).map(|sensor| slug(&sensor.spec.name)))
            }
            ["Sensors", id] if is_new => {
                let sensor = self.of_kinds(&analog).find(|sensor| slug(&sensor.spec.name) == *id)?;
                let Reading::Analog { thresholds, .. } = &sensor.spec.reading else { return None };
                let (kind, unit) = match sensor.spec.kind {
                    Kind::Temperature => ("Temperature", "Cel"),
                    Kind::Fan => ("Rotational", "{rev}/min"),
                    Kind::Voltage => ("Voltage", "V"),
                    Kind::Current => ("Current", "A"),
                    _ => ("Power", "W"),
                };
                let names =
                    ["LowerCaution", "LowerCritical", "LowerFatal", "UpperCaution", "UpperCritical", "UpperFatal"];
                let lines = names.into_iter().zip(in_order(thresholds));
                let lines: Map<_, _> = lines
                    .filter_map(|(name, line)| Some((name.into(), json!({ "Reading": rounded(line?) }))))
                    .collect();
                let own = json!({
                    "ReadingType": kind, "ReadingUnits": unit, "Reading": self.value(sensor),
                    "Status": self.status(sensor), "Thresholds": lines,
                });
                resource(path, "Sensor.v1_7_0.Sensor", id, &sensor.spec.name, own)
            }
            ["ThermalSubsystem"] if is_new => resource(
                path,
                "ThermalSubsystem.v1_2_0.ThermalSubsystem",
                "ThermalSubsystem",
                "Thermal Subsystem",
                json!({
                    "Fans": link(format!("{path}/Fans")), "ThermalMetrics": link(format!("{path}/ThermalMetrics")),
                    "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["ThermalSubsystem", "Fans"] if is_new => {
                self.collection(path, "Fan", self.of_kinds(&[Kind::Fan]).map(|sensor| slug(&sensor.spec.name)))
            }
            ["ThermalSubsystem", "Fans", id] if is_new => {
                let sensor = self.of_kinds(&[Kind::Fan]).find(|sensor| slug(&sensor.spec.name) == *id)?;
                let own = json!({
                    "SpeedPercent": {
                        "DataSourceUri": format!("{}/Sensors/{id}", self.chassis()),
                        "Reading": self.value(sensor).as_f64().map(|rpm| rounded(rpm / 160.0)), "SpeedRPM": self.value(sensor),
                    },
                    "Status": self.status(sensor),
                });
                resource(path, "Fan.v1_4_0.Fan", id, &sensor.spec.name, own)
            }
            ["ThermalSubsystem", "ThermalMetrics"] if is_new => {
                let readings = self.of_kinds(&[Kind::Temperature]);
                let readings: Vec<_> = readings
                    .map(|sensor| {
                        json!({
                            "DataSourceUri": format!("{}/Sensors/{}", self.chassis(), slug(&sensor.spec.name)),
                            "DeviceName": sensor.spec.name, "Reading": self.value(sensor),
                        })
                    })
                    .collect();
                let own = json!({ "TemperatureReadingsCelsius": readings });
                resource(path, "ThermalMetrics.v1_1_0.ThermalMetrics", "ThermalMetrics", "Thermal Metrics", own)
            }
            ["PowerSubsystem"] if is_new => resource(
                path,
                "PowerSubsystem.v1_1_0.PowerSubsystem",
                "PowerSubsystem",
                "Power Subsystem",
                json!({
                    "CapacityWatts": 1600, "PowerSupplies": link(format!("{path}/PowerSupplies")),
                    "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["PowerSubsystem", "PowerSupplies"] if is_new => {
                let supplies = self.of_kinds(&[Kind::PowerSupply]).enumerate();
                self.collection(path, "PowerSupply", supplies.map(|(at, _)| format!("{}", at + 1)))
            }
            ["PowerSubsystem", "PowerSupplies", id] if is_new => {
                let at = id.parse::<usize>().ok()?.checked_sub(1)?;
                let sensor = self.of_kinds(&[Kind::PowerSupply]).nth(at)?;
                let own = json!({
                    "Model": "P800", "Manufacturer": "Powerco", "PowerSupplyType": "AC", "PowerCapacityWatts": 800,
                    "SerialNumber": format!("PS{}{at}", personality.serial), "Status": self.status(sensor),
                });
                resource(path, "PowerSupply.v1_5_0.PowerSupply", id, &format!("PSU {id}"), own)
            }
            _ => return None,
        })
    }

    fn in_manager(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let personality = self.personality();
        Some(match rest {
            [] => {
                let mut own = json!({
                    "ManagerType": "BMC", "Manufacturer": personality.vendor, "Model": personality.manager,
                    "FirmwareVersion": self.state.firmware, "UUID": personality.uuid, "PowerState": "On",
                    "DateTime": self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "DateTimeLocalOffset": "+00:00",
                    "ServiceEntryPointUUID": personality.uuid,
                    "Status": { "State": "Enabled", "Health": "OK" },
                    "EthernetInterfaces": link(format!("{path}/EthernetInterfaces")),
                    "VirtualMedia": link(format!("{path}/VirtualMedia")),
                    "Links": { "ManagerForServers": [link(self.system())], "ManagerForChassis": [link(self.chassis())] },
                    "Actions": { "#Manager.Reset": {
                        "target": format!("{path}/Actions/Manager.Reset"),
                        "ResetType@Redfish.AllowableValues": ["GracefulRestart", "ForceRestart"],
                    } },
                });
                if personality.quirks.log_under_manager {
                    own["LogServices"] = link(format!("{path}/LogServices"));
                }
                resource(path, "Manager.v1_18_0.Manager", &personality.ids.manager, "Manager", own)
            }
            ["EthernetInterfaces"] => self.collection(path, "EthernetInterface", ["1".into()]),
            ["EthernetInterfaces", "1"] => {
                let lan = &self.state.lan;
                let own = json!({
                    "MACAddress": mac(lan.mac), "HostName": self.state.host_name, "InterfaceEnabled": true,
                    "DHCPv4": { "DHCPEnabled": lan.is_dhcp },
                    "IPv4Addresses": [{
                        "Address": dotted(lan.address), "SubnetMask": dotted(lan.netmask), "Gateway": dotted(lan.gateway),
                        "AddressOrigin": if lan.is_dhcp { "DHCP" } else { "Static" },
                    }],
                    "VLAN": { "VLANEnable": lan.vlan.is_some(), "VLANId": lan.vlan.unwrap_or(0) },
                    "Status": { "State": "Enabled", "Health": "OK" },
                });
                resource(path, "EthernetInterface.v1_9_0.EthernetInterface", "1", "Manager's network", own)
            }
            ["LogServices", rest @ ..] if personality.quirks.log_under_manager => return self.log(path, rest),
            ["VirtualMedia"] => self.collection(path, "VirtualMedia", ["CD1".into()]),
            ["VirtualMedia", "CD1"] => {
                let media = self.state.media.as_deref();
                let own = json!({
                    "MediaTypes": ["CD", "DVD"], "Image": media,
                    "ImageName": media.and_then(|image| image.rsplit('/').next()),
                    "Inserted": media.is_some(), "WriteProtected": true,
                    "ConnectedVia": if media.is_some() { "URI" } else { "NotConnected" },
                    "Actions": {
                        "#VirtualMedia.InsertMedia": { "target": format!("{path}/Actions/VirtualMedia.InsertMedia") },
                        "#VirtualMedia.EjectMedia": { "target": format!("{path}/Actions/VirtualMedia.EjectMedia") },
                    },
                });
                resource(path, "VirtualMedia.v1_6_2.VirtualMedia", "CD1", "Virtual CD", own)
            }
            _ => return None,
        })
    }

    fn log(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let name = &self.personality().quirks.log;
        let log = &self.state.log;
        Some(match rest {
            [] => self.collection(path, "LogService", [name.clone()]),
            [id] if id == name => resource(
                path,
                "LogService.v1_4_0.LogService",
                id,
                "System Event Log",
                json!({
                    "ServiceEnabled": true, "LogEntryType": "SEL", "MaxNumberOfRecords": crate::log::CAPACITY,
                    "OverWritePolicy": "NeverOverWrites", "Entries": link(format!("{path}/Entries")),
                    "DateTime": self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "DateTimeLocalOffset": "+00:00",
                    "Status": { "State": "Enabled", "Health": "OK" },
                    "Actions": { "#LogService.ClearLog": { "target": format!("{path}/Actions/LogService.ClearLog") } },
                }),
            ),
            [id, "Entries"] if id == name => {
                let mut all =
                    self.collection(path, "LogEntry", log.records().iter().map(|entry| entry.id().to_string()));
                // Entries are given whole, as every BMC does; a dangling link stays a link.
                if let Some(members) = all["Members"].as_array_mut() {
                    for (member, entry) in members.iter_mut().zip(log.records()) {
                        *member = self.entry(&format!("{path}/{}", entry.id()), entry);
                    }
                }
                all
            }
            [id, "Entries", entry] if id == name => {
                let entry = entry
                    .parse()
                    .ok()
                    .and_then(|id| log.get(id))
                    .filter(|(found, _)| found.id().to_string() == **entry)?;
                self.entry(path, &entry.0)
            }
            _ => return None,
        })
    }

    fn entry(&self, path: &str, record: &Record) -> Value {
        let sensor = self.state.sensor(record.0[11]).map(|sensor| sensor.spec.name.as_str());
        let text = record.message();
        let message = sensor.map_or_else(|| text.clone(), |sensor| format!("{sensor}: {text}"));
        let sensor_type = match record.0[10] {
            0x01 => "Temperature",
            0x02 => "Voltage",
            0x03 => "Current",
            0x04 => "Fan",
            0x05 => "Physical Chassis Security",
            0x07 => "Processor",
            0x08 => "Power Supply / Converter",
            0x0b => "Other Units-based Sensor",
            0x0c => "Memory",
            0x0d => "Drive Slot/Bay",
            _ => "System Event",
        };
        let created = record.time().and_then(|time| Timestamp::from_second(time.into()).ok());
        let own = json!({
            "EntryType": "SEL",
            "Created": created.map(|created| created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "EntryCode": if record.is_over() { "Deassert" } else { "Assert" },
            "SensorType": sensor_type, "SensorNumber": record.0[11],
            "Severity": health(record.health()), "Message": message,
            "MessageId": format!("0x{}", hex::encode_upper(&record.0[12..])),
        });
        resource(path, "LogEntry.v1_15_0.LogEntry", &record.id().to_string(), "Log Entry", own)
    }

    fn accounts(&self, path: &str, rest: &[&str]) -> Option<Value> {
        Some(match rest {
            [] => resource(
                path,
                "AccountService.v1_13_0.AccountService",
                "AccountService",
                "Account Service",
                json!({
                    "ServiceEnabled": true, "MinPasswordLength": 1, "MaxPasswordLength": crate::state::MAX_PASSWORD,
                    "Accounts": link(format!("{path}/Accounts")), "Roles": link(format!("{path}/Roles")),
                    "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["Accounts"] => {
                let users = (1..).zip(&self.state.users).filter(|(_, user)| !user.name.is_empty());
                self.collection(path, "ManagerAccount", users.map(|(id, _): (u8, _)| id.to_string()))
            }
            ["Accounts", id] => {
                let at = id.parse::<usize>().ok()?.checked_sub(1)?;
                let user = self.state.users.get(at).filter(|user| !user.name.is_empty())?;
                let role = role_id(user.role.unwrap_or(Role::None));
                let own = json!({
                    "UserName": user.name, "Password": null, "RoleId": role, "Enabled": user.is_enabled, "Locked": false,
                    "AccountTypes": ["Redfish", "IPMI"],
                    "Links": { "Role": link(format!("{ROOT}/AccountService/Roles/{role}")) },
                });
                resource(path, "ManagerAccount.v1_10_0.ManagerAccount", id, "User Account", own)
            }
            ["Roles"] => self.collection(path, "Role", ["Administrator", "Operator", "ReadOnly"].map(String::from)),
            ["Roles", id @ ("Administrator" | "Operator" | "ReadOnly")] => {
                let privileges: &[&str] = match *id {
                    "Administrator" => {
                        &["Login", "ConfigureManager", "ConfigureUsers", "ConfigureComponents", "ConfigureSelf"]
                    }
                    "Operator" => &["Login", "ConfigureComponents", "ConfigureSelf"],
                    _ => &["Login", "ConfigureSelf"],
                };
                let own = json!({ "RoleId": id, "IsPredefined": true, "AssignedPrivileges": privileges });
                resource(path, "Role.v1_3_1.Role", id, "User Role", own)
            }
            _ => return None,
        })
    }

    fn updates(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let inventory = |id: &str, name: &str, version: &str| {
            let own = json!({ "Version": version, "Updateable": id == "BMC", "Status": { "State": "Enabled", "Health": "OK" } });
            resource(path, "SoftwareInventory.v1_9_0.SoftwareInventory", id, name, own)
        };
        Some(match rest {
            [] => resource(
                path,
                "UpdateService.v1_12_0.UpdateService",
                "UpdateService",
                "Update Service",
                json!({
                    "ServiceEnabled": true, "FirmwareInventory": link(format!("{path}/FirmwareInventory")),
                    "MultipartHttpPushUri": format!("{path}/update-multipart"), "MaxImageSizeBytes": super::MAX_BODY,
                    "Status": { "State": "Enabled", "Health": "OK" },
                    "Actions": { "#UpdateService.SimpleUpdate": {
                        "target": format!("{path}/Actions/UpdateService.SimpleUpdate"),
                        "TransferProtocol@Redfish.AllowableValues": ["HTTP", "HTTPS"],
                    } },
                }),
            ),
            ["FirmwareInventory"] => self.collection(path, "SoftwareInventory", ["BMC".into(), "BIOS".into()]),
            ["FirmwareInventory", "BMC"] => inventory("BMC", "BMC firmware", &self.state.firmware),
            ["FirmwareInventory", "BIOS"] => inventory("BIOS", "System firmware", &self.personality().bios),
            _ => return None,
        })
    }

    fn tasks(&self, path: &str, rest: &[&str]) -> Option<Value> {
        Some(match rest {
            [] => resource(
                path,
                "TaskService.v1_2_0.TaskService",
                "TaskService",
                "Task Service",
                json!({
                    "ServiceEnabled": true, "Tasks": link(format!("{path}/Tasks")), "CompletedTaskOverWritePolicy": "Manual",
                    "LifeCycleEventOnTaskStateChange": false, "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["Tasks"] => {
                let known = self.state.forgotten + 1..=self.state.flashes.len();
                self.collection(path, "Task", known.map(|id| id.to_string()))
            }
            ["Tasks", id] => {
                let place = id.parse::<usize>().ok()?.checked_sub(1).filter(|place| *place >= self.state.forgotten)?;
                let flash = self.state.flashes.get(place)?;
                let has_failed = flash.ended.is_some() && flash.fares == Flashing::Fails;
                let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let mut own = json!({
                    "TaskState": if flash.ended.is_some() { "Completed" } else { "Running" },
                    "TaskStatus": "OK", "PercentComplete": if flash.ended.is_some() { 100 } else { 50 },
                    "StartTime": time(flash.began), "Messages": [],
                });
                if has_failed {
                    own["TaskState"] = json!("Exception");
                    own["TaskStatus"] = json!("Critical");
                    own["Messages"] = json!([{
                        "MessageId": "Update.1.1.VerificationFailed",
                        "Message": format!("Verification of image '{}' failed.", flash.image),
                        "MessageArgs": [flash.image], "Severity": "Critical",
                    }]);
                }
                if let Some(ended) = flash.ended {
                    own["EndTime"] = json!(time(ended));
                }
                resource(path, "Task.v1_7_2.Task", id, &format!("Update from {}", flash.image), own)
            }
            _ => return None,
        })
    }

    fn events(&self, path: &str, rest: &[&str]) -> Option<Value> {
        let subscriptions = &self.state.subscriptions;
        Some(match rest {
            [] => resource(
                path,
                "EventService.v1_10_0.EventService",
                "EventService",
                "Event Service",
                json!({
                    "ServiceEnabled": true, "DeliveryRetryAttempts": deliver::ATTEMPTS,
                    "DeliveryRetryIntervalSeconds": deliver::INTERVAL.as_secs(),
                    "EventFormatTypes": ["Event"], "Subscriptions": link(format!("{path}/Subscriptions")),
                    "Status": { "State": "Enabled", "Health": "OK" },
                }),
            ),
            ["Subscriptions"] => {
                self.collection(path, "EventDestination", subscriptions.iter().map(|(id, ..)| id.to_string()))
            }
            ["Subscriptions", id] => {
                let (_, destination, context) = subscriptions.iter().find(|(number, ..)| number.to_string() == **id)?;
                let own = json!({
                    "Destination": destination, "Context": context, "Protocol": "Redfish",
                    "SubscriptionType": "RedfishEvent", "EventFormatType": "Event",
                });
                resource(path, "EventDestination.v1_13_1.EventDestination", id, "Event Subscription", own)
            }
            _ => return None,
        })
    }
}

/// Gives members another type than their schema says: numbers and truths become text, text a list.
fn malform(resource: &mut Value) {
    let Value::Object(members) = resource else { return };
    for (name, value) in members.iter_mut().filter(|(name, _)| !name.starts_with('@')) {
        *value = match value.take() {
            Value::Number(number) => json!(number.to_string()),
            Value::Bool(truth) => json!(truth.to_string()),
            Value::String(text) if name != "Id" => json!([text]),
            Value::Array(mut items) => {
                items.push(json!(7));
                Value::Array(items)
            }
            other => other,
        };
    }
}
