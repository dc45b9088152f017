//! Machines: what they are, where they are in their life, and what their rack is told of
//! them.
//!
//! Invariants:
//! - An address is one machine's in its rack; so is a MAC.
//! - Whatever the rack's intent tells changes together with the rack's revision.

use std::{net::Ipv4Addr, str::FromStr, sync::Arc};

use jiff::Timestamp;
use rackhand_common::{
    event::{Login, Stage},
    health,
    id::{Epoch, MachineId, ProjectId, RackId},
    intent::{Boot, Order},
    machine::{Firmware, Inventory, Mac, Mainboard, Power},
    seal::{Seal, Sealed as _},
};
use rackhand_controller_core::{
    access::Sight,
    identity::{self, Part},
    lifecycle::Lifecycle,
};

use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;

use super::{
    ImageVersion, Store, StoreError, Tx,
    database::{Builder, Executor, Row, query},
    from_json, id, json, micros,
    places::OF_RACKS,
    taken, timestamp,
};

/// A machine as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which.
    pub id: MachineId,
    /// The rack it stands in.
    pub rack: RackId,
    /// The project it is given to.
    pub project: Option<ProjectId>,
    /// The operator's name for it; unique.
    pub name: String,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// Its allocation epoch.
    pub epoch: Epoch,
    /// What it boots when it asks the network.
    pub boot: Boot,
    /// Its address on the provisioning network.
    pub address: Ipv4Addr,
    /// Its network cards; the first is the one it boots from.
    pub macs: Vec<Mac>,
    /// What its installer found last.
    pub inventory: Arc<Inventory>,
    /// What an operator accepted as its parts; `None` while nobody has adopted it.
    pub accepted: Option<Arc<Inventory>>,
    /// The event of its installer's latest connection.
    pub connection: u64,
    /// Whether that connection stands.
    pub connected: bool,
    /// Chassis power as last read; `None` when nobody has read it.
    pub power: Option<Power>,
    /// The latest hop on its way.
    pub stage: Option<Stage>,
    /// The event that told of it.
    pub stage_event: u64,
    /// The event of its latest start by a power driver.
    pub power_event: u64,
    /// What its installer shall do.
    pub order: Option<Order>,
    /// The image on it, when it is active.
    pub image: Option<ImageVersion>,
    /// What an operator should look at.
    pub alert: Option<String>,
    /// Why it is out of service; `None` while it is in service, or nobody said why.
    pub held: Option<Hold>,
    /// That no installer has looked into it: it was adopted while it ran. What was told of it is its
    /// `accepted`, and its `inventory` is that and what its BMC says.
    pub uninspected: Option<Uninspected>,
    /// Where its rescue system is reached, since that told.
    pub rescue: Option<Login>,
    /// When it was discovered.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// Counts its changes.
    pub version: u64,
}

/// What is known of a machine that was adopted while it ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uninspected {
    /// How its firmware boots, when somebody said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// When its BMC told what is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_bmc: Option<Timestamp>,
}

/// Why a machine is out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// In somebody's words, or what a run failed at.
    pub reason: String,
    /// From when on.
    pub since: Timestamp,
    /// When somebody meant to be done with it.
    pub until: Option<Timestamp>,
}

impl MachineFilter {
    /// Those of one rack.
    pub fn of(rack: RackId) -> Self {
        Self { rack: Some(rack), ..Self::default() }
    }
}

impl MachineFilter {
    fn push(&self, query: &mut Builder) {
        let equal = [
            ("rack", self.rack.map(|rack| rack.to_string())),
            ("project", self.project.map(|project| project.to_string())),
            ("lifecycle", self.lifecycle.map(|lifecycle| lifecycle.to_string())),
            ("image", self.image.as_ref().map(|(name, _)| name.clone())),
        ];
        for (column, value) in equal.into_iter().filter_map(|(column, value)| Some((column, value?))) {
            query.push(format_args!(" AND machines.{column} = ")).push_bind(value);
        }
        if let Some((_, Some(version))) = self.image {
            query.push(" AND machines.image_version = ").push_bind(i64::from(version));
        }
        if let Some(name) = &self.name {
            // Names are ASCII: behind all that begin so, and before whatever follows.
            query.push(" AND machines.name >= ").push_bind(name);
            query.push(" AND machines.name < ").push_bind(format!("{name}~"));
        }
        if let Some(mac) = self.mac {
            query
                .push(" AND machines.id IN (SELECT machine FROM macs WHERE mac = ")
                .push_bind(mac.to_string())
                .push(")");
        }
        if let Some(health) = self.health {
            // Of those that nothing was told of, nothing is known.
            query.push(" AND COALESCE((SELECT state FROM machine_health WHERE id = machines.id), 'unknown') = ");
            query.push_bind(health.word());
        }
        match self.alert {
            Some(true) => query.push(" AND machines.alert IS NOT NULL"),
            Some(false) => query.push(" AND machines.alert IS NULL"),
            None => query,
        };
    }
}

impl Default for MachineOrder {
    fn default() -> Self {
        Self::Discovered(None)
    }
}

impl Machine {
    /// Its mainboard as it was accepted, or, while nobody has adopted it, as it was found.
    pub fn mainboard(&self) -> Option<Mainboard> {
        self.accepted.as_ref().unwrap_or(&self.inventory).system.mainboard()
    }

    /// What an operator is told once the time is over for which it is out of service, or in rescue.
    pub fn overdue(&self) -> Option<String> {
        let held = self.held.as_ref()?;
        let until = held.until.map(|until| format!("{until:.0}")).unwrap_or_default();
        Some(match self.lifecycle {
            Lifecycle::Rescue => format!(
                "in rescue until {until}, and still is: `rackhand machine leave-rescue {}` has its own system run \
                 again, and `rackhand machine rescue {}` begins anew",
                self.name, self.name
            ),
            _ => format!("out of service until {until}, and still is ({}): resume it, or say until when", held.reason),
        })
    }

    /// Parts that are not those accepted; empty while nobody has adopted it.
    pub fn changes(&self) -> Vec<identity::Change> {
        let differing = if self.uninspected.is_some() { identity::contradictions } else { identity::compare };
        self.accepted.as_ref().map(|accepted| differing(accepted, &self.inventory)).unwrap_or_default()
    }
}

/// Which machines of a list: those that all of it is true of.
#[derive(Clone, Debug, Default)]
pub struct MachineFilter {
    /// That can be seen.
    pub sight: Sight,
    /// Given to this project.
    pub project: Option<ProjectId>,
    /// In this rack.
    pub rack: Option<RackId>,
    /// There in their life.
    pub lifecycle: Option<Lifecycle>,
    /// With this image on them, of any version or of one.
    pub image: Option<(String, Option<u32>)>,
    /// Whose names begin so.
    pub name: Option<String>,
    /// With this network card.
    pub mac: Option<Mac>,
    /// That an operator should look at, or should not.
    pub alert: Option<bool>,
    /// That fare so.
    pub health: Option<health::State>,
}

/// The place in a list behind which it goes on; none of it is the beginning.
#[derive(Clone, Debug)]
pub enum MachineOrder {
    /// In the order of their discovery, behind this one.
    Discovered(Option<MachineId>),
    /// By name, behind this one.
    Name(Option<String>),
}

const SELECT: &str = "SELECT machines.*,
    (SELECT string_agg(mac, ' ' ORDER BY position) FROM macs WHERE machine = machines.id) AS macs
    FROM machines";

impl Store {
    /// The machine with this id or name.
    pub async fn machine(&self, id_or_name: &str) -> Result<Machine, StoreError> {
        machine(&self.seal, &self.pool, id_or_name).await
    }

    /// Machines that `filter` is true of, at most `limit`.
    pub async fn machines(
        &self,
        filter: &MachineFilter,
        order: MachineOrder,
        limit: u32,
    ) -> Result<Vec<Machine>, StoreError> {
        let (column, after) = match order {
            MachineOrder::Discovered(after) => ("id", after.map(|id| id.to_string()).unwrap_or_default()),
            MachineOrder::Name(after) => ("name", after.unwrap_or_default()),
        };
        // A condition that is not asked for is not in the query: each finds its own index.
        let mut query = Builder::new(SELECT);
        let order = format!("machines.{column}");
        self.reach(&filter.sight).await?.push(&mut query, "machines", OF_RACKS, &order, limit, |query| {
            query.push(format_args!(" AND {order} > ")).push_bind(&after);
            filter.push(query);
        });
        query.build().fetch_all(&self.pool).await?.iter().map(|row| read(&self.seal, row)).collect()
    }

    /// Machines that no installer has looked into, that have a BMC, and whose BMC has not told what is in them.
    pub async fn untold_by_bmc(&self) -> Result<Vec<Machine>, StoreError> {
        let rows = query(AssertSqlSafe(format!(
            "{SELECT} WHERE uninspected IS NOT NULL AND EXISTS (SELECT 1 FROM bmcs WHERE bmcs.id = machines.id) ORDER BY id"
        )))
        .fetch_all(&self.pool)
        .await?;
        let machines: Vec<_> = rows.iter().map(|row| read(&self.seal, row)).collect::<Result<_, _>>()?;
        let is_untold = |machine: &Machine| machine.uninspected.as_ref().is_some_and(|known| known.by_bmc.is_none());
        Ok(machines.into_iter().filter(is_untold).collect())
    }
}

impl Tx {
    /// The machine with this id or name.
    pub async fn machine(&mut self, id_or_name: &str) -> Result<Machine, StoreError> {
        machine(&self.seal, &mut self.inner, id_or_name).await
    }

    /// All machines of a rack, in the order of their discovery.
    pub async fn machines_of(&mut self, rack: RackId) -> Result<Vec<Machine>, StoreError> {
        query(AssertSqlSafe(format!("{SELECT} WHERE rack = $1 ORDER BY id")))
            .bind(rack.to_string())
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(|row| read(&self.seal, row))
            .collect()
    }

    /// The machine in this rack with any of these MACs, the first that has one.
    pub async fn machine_by_macs(&mut self, rack: RackId, macs: &[Mac]) -> Result<Option<Machine>, StoreError> {
        for mac in macs {
            let row = query("SELECT machine FROM macs WHERE rack = $1 AND mac = $2")
                .bind(rack.to_string())
                .bind(mac.to_string())
                .fetch_optional(&mut self.inner)
                .await?;
            if let Some(row) = row {
                return self.machine(row.try_get("machine")?).await.map(Some);
            }
        }
        Ok(None)
    }

    /// The machine in this rack with this address.
    pub async fn machine_by_address(&mut self, rack: RackId, address: Ipv4Addr) -> Result<Option<Machine>, StoreError> {
        query(AssertSqlSafe(format!("{SELECT} WHERE rack = $1 AND address = $2")))
            .bind(rack.to_string())
            .bind(address.to_string())
            .fetch_optional(&mut self.inner)
            .await?
            .as_ref()
            .map(|row| read(&self.seal, row))
            .transpose()
    }

    /// Machines that somebody meant to be done with by now, and that carry no alert, at most `limit`.
    pub async fn overdue(&mut self, now: Timestamp, limit: u32) -> Result<Vec<Machine>, StoreError> {
        query(AssertSqlSafe(format!("{SELECT} WHERE held_until <= $1 AND alert IS NULL ORDER BY held_until LIMIT $2")))
            .bind(micros(now))
            .bind(limit)
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(|row| read(&self.seal, row))
            .collect()
    }

    /// A row for a machine that was not known.
    pub async fn insert_machine(&mut self, machine: &Machine) -> Result<(), StoreError> {
        self.watch("machines", machine.id).await?;
        query(
            "INSERT INTO machines (id, rack, name, lifecycle, epoch, boot, address, inventory, connection, connected,
                power, stage, stage_event, power_event, orders, image, alert, created, updated, accepted,
                image_version, project, held_reason, held_since, held_until, rescue, uninspected, version)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                $22, $23, $24, $25, $26, $27, 1)",
        )
        .bind(machine.id.to_string())
        .bind(machine.rack.to_string())
        .bind(&machine.name)
        .bind(machine.lifecycle.to_string())
        .bind(machine.epoch.0 as i64)
        .bind(json(&machine.boot))
        .bind(machine.address.to_string())
        .bind(json(machine.inventory.as_ref()))
        .bind(machine.connection as i64)
        .bind(machine.connected)
        .bind(machine.power.as_ref().map(json))
        .bind(machine.stage.as_ref().map(json))
        .bind(machine.stage_event as i64)
        .bind(machine.power_event as i64)
        .bind(machine.order.as_ref().map(|order| json(&order.sealed(&self.seal, order.run))))
        .bind(machine.image.as_ref().map(|image| &image.name))
        .bind(&machine.alert)
        .bind(micros(machine.created))
        .bind(micros(machine.updated))
        .bind(machine.accepted.as_deref().map(json))
        .bind(machine.image.as_ref().map(|image| i64::from(image.version)))
        .bind(machine.project.map(|project| project.to_string()))
        .bind(machine.held.as_ref().map(|held| &held.reason))
        .bind(machine.held.as_ref().map(|held| micros(held.since)))
        .bind(machine.held.as_ref().and_then(|held| held.until).map(micros))
        .bind(machine.rescue.as_ref().map(json))
        .bind(machine.uninspected.as_ref().map(json))
        .execute(&mut self.inner)
        .await
        .map_err(taken("machine name, id or address"))?;
        self.write_macs(machine).await
    }

    /// Writes everything that changes in a machine, and bumps the rack's revision when what
    /// the rack is told changed. Fails with [`StoreError::Changed`] when the row is not the
    /// one that was read; on success `machine` is the row as written.
    pub async fn update_machine(&mut self, now: Timestamp, machine: &mut Machine) -> Result<(), StoreError> {
        let before = self.machine(&machine.id.to_string()).await?;
        if before == *machine {
            return Ok(());
        }
        self.watch("machines", machine.id).await?;
        let changed = query(
            "UPDATE machines SET name = $3, lifecycle = $4, epoch = $5, boot = $6, inventory = $7, connection = $8,
                connected = $9, power = $10, stage = $11, stage_event = $12, power_event = $13, orders = $14,
                image = $15, alert = $16, updated = $17, accepted = $18, rack = $19, address = $20,
                image_version = $21, project = $22, held_reason = $23, held_since = $24, held_until = $25,
                rescue = $26, uninspected = $27, version = version + 1
             WHERE id = $1 AND version = $2",
        )
        .bind(machine.id.to_string())
        .bind(machine.version as i64)
        .bind(&machine.name)
        .bind(machine.lifecycle.to_string())
        .bind(machine.epoch.0 as i64)
        .bind(json(&machine.boot))
        .bind(json(machine.inventory.as_ref()))
        .bind(machine.connection as i64)
        .bind(machine.connected)
        .bind(machine.power.as_ref().map(json))
        .bind(machine.stage.as_ref().map(json))
        .bind(machine.stage_event as i64)
        .bind(machine.power_event as i64)
        .bind(machine.order.as_ref().map(|order| json(&order.sealed(&self.seal, order.run))))
        .bind(machine.image.as_ref().map(|image| &image.name))
        .bind(&machine.alert)
        .bind(micros(now))
        .bind(machine.accepted.as_deref().map(json))
        .bind(machine.rack.to_string())
        .bind(machine.address.to_string())
        .bind(machine.image.as_ref().map(|image| i64::from(image.version)))
        .bind(machine.project.map(|project| project.to_string()))
        .bind(machine.held.as_ref().map(|held| &held.reason))
        .bind(machine.held.as_ref().map(|held| micros(held.since)))
        .bind(machine.held.as_ref().and_then(|held| held.until).map(micros))
        .bind(machine.rescue.as_ref().map(json))
        .bind(machine.uninspected.as_ref().map(json))
        .execute(&mut self.inner)
        .await
        .map_err(taken("machine name or address"))?
        .rows_affected();
        if changed == 0 {
            return Err(StoreError::Changed("machine"));
        }
        if (before.rack, &before.macs) != (machine.rack, &machine.macs) {
            query("DELETE FROM macs WHERE machine = $1").bind(machine.id.to_string()).execute(&mut self.inner).await?;
            self.write_macs(machine).await?;
        }
        if before.rack != machine.rack {
            self.touch_rack(before.rack).await?;
        }
        let told = |machine: &Machine| (crate::intent::machine(machine), machine.lifecycle);
        if before.rack != machine.rack || told(&before) != told(machine) {
            self.touch_rack(machine.rack).await?;
        }
        machine.updated = now;
        machine.version += 1;
        Ok(())
    }

    /// Notes that the machine's accepted parts are its own, whoever's they were before.
    pub async fn claim_parts(&mut self, machine: &Machine) -> Result<(), StoreError> {
        query("DELETE FROM parts WHERE machine = $1").bind(machine.id.to_string()).execute(&mut self.inner).await?;
        for (kind, identity) in machine.accepted.as_deref().into_iter().flat_map(identity::marks) {
            query(
                "INSERT INTO parts (kind, identity, machine) VALUES ($1, $2, $3)
                 ON CONFLICT (kind, identity) DO UPDATE SET machine = excluded.machine",
            )
            .bind(kind.to_string())
            .bind(identity)
            .bind(machine.id.to_string())
            .execute(&mut self.inner)
            .await?;
        }
        Ok(())
    }

    /// Parts found in this machine that are another's, with that machine's name.
    pub async fn parts_of_others(&mut self, machine: &Machine) -> Result<Vec<(Part, String, String)>, StoreError> {
        let mut found = Vec::new();
        for (kind, identity) in identity::marks(&machine.inventory) {
            let row = query(
                "SELECT machines.name AS name FROM parts JOIN machines ON machines.id = parts.machine
                 WHERE parts.kind = $1 AND parts.identity = $2 AND parts.machine <> $3",
            )
            .bind(kind.to_string())
            .bind(&identity)
            .bind(machine.id.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
            if let Some(row) = row {
                found.push((kind, identity, row.try_get("name")?));
            }
        }
        Ok(found)
    }

    /// Removes a machine with its runs and commands; its events stay. It must have no run in
    /// progress.
    pub async fn delete_machine(&mut self, machine: &Machine) -> Result<(), StoreError> {
        self.watch("machines", machine.id).await?;
        self.watch("bmcs", machine.id).await?;
        self.watch("bmc_baselines", machine.id).await?;
        self.watch("health_overrides", machine.id).await?;
        for statement in [
            "DELETE FROM machine_health WHERE id = $1",
            "DELETE FROM health_transitions WHERE machine = $1",
            "DELETE FROM health_overrides WHERE id = $1",
            "DELETE FROM machine_hardware WHERE id = $1",
            "DELETE FROM test_results WHERE machine = $1",
            "DELETE FROM firmware_updates WHERE machine = $1",
            "DELETE FROM commands WHERE machine = $1",
            "DELETE FROM runs WHERE machine = $1",
            "DELETE FROM bmc_baselines WHERE id = $1",
            "DELETE FROM bmcs WHERE id = $1",
            "DELETE FROM machines WHERE id = $1",
        ] {
            query(statement).bind(machine.id.to_string()).execute(&mut self.inner).await?;
        }
        self.touch_rack(machine.rack).await?;
        Ok(())
    }

    async fn write_macs(&mut self, machine: &Machine) -> Result<(), StoreError> {
        for (position, mac) in machine.macs.iter().enumerate() {
            query("INSERT INTO macs (rack, mac, machine, position) VALUES ($1, $2, $3, $4)")
                .bind(machine.rack.to_string())
                .bind(mac.to_string())
                .bind(machine.id.to_string())
                .bind(position as i64)
                .execute(&mut self.inner)
                .await
                .map_err(taken("MAC"))?;
        }
        Ok(())
    }
}

async fn machine(seal: &Seal, executor: impl Into<Executor<'_>>, id_or_name: &str) -> Result<Machine, StoreError> {
    query(AssertSqlSafe(format!("{SELECT} WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC LIMIT 1")))
        .bind(id_or_name)
        .fetch_optional(executor)
        .await?
        .as_ref()
        .map(|row| read(seal, row))
        .transpose()?
        .ok_or(StoreError::NotFound("machine"))
}

fn read(seal: &Seal, row: &Row) -> Result<Machine, StoreError> {
    let macs: Option<String> = row.try_get("macs")?;
    let optional = |column| row.try_get::<Option<String>, _>(column);
    let text = row.try_get::<&str, _>("inventory")?;
    let inventory: Arc<Inventory> = Arc::new(from_json("inventory", text)?);
    // Most are as they were accepted, and are read once.
    let accepted = match row.try_get::<Option<&str>, _>("accepted")? {
        Some(accepted) if accepted == text => Some(inventory.clone()),
        accepted => accepted.map(|text| from_json("accepted inventory", text)).transpose()?.map(Arc::new),
    };
    Ok(Machine {
        id: id(row.try_get("id")?)?,
        rack: id(row.try_get("rack")?)?,
        project: optional("project")?.as_deref().map(id).transpose()?,
        name: row.try_get("name")?,
        lifecycle: parsed("lifecycle", row.try_get("lifecycle")?)?,
        epoch: Epoch(row.try_get::<i64, _>("epoch")? as u64),
        boot: from_json("boot target", row.try_get("boot")?)?,
        address: parsed("address", row.try_get("address")?)?,
        macs: macs.unwrap_or_default().split_whitespace().map(|mac| parsed("MAC", mac)).collect::<Result<_, _>>()?,
        inventory,
        accepted,
        connection: row.try_get::<i64, _>("connection")? as u64,
        connected: row.try_get("connected")?,
        power: optional("power")?.map(|text| from_json("power", &text)).transpose()?,
        stage: optional("stage")?.map(|text| from_json("stage", &text)).transpose()?,
        stage_event: row.try_get::<i64, _>("stage_event")? as u64,
        power_event: row.try_get::<i64, _>("power_event")? as u64,
        order: optional("orders")?.map(|text| order(seal, &text)).transpose()?,
        image: optional("image")?
            .map(|name| {
                let version = row.try_get::<Option<i64>, _>("image_version")?.unwrap_or(1) as u32;
                Ok::<_, StoreError>(ImageVersion { name, version })
            })
            .transpose()?,
        alert: row.try_get("alert")?,
        held: match (optional("held_reason")?, row.try_get("held_since")?) {
            (Some(reason), Some(since)) => {
                let until = row.try_get::<Option<i64>, _>("held_until")?.map(timestamp).transpose()?;
                Some(Hold { reason, since: timestamp(since)?, until })
            }
            _ => None,
        },
        uninspected: optional("uninspected")?.map(|text| from_json("what is known of it", &text)).transpose()?,
        rescue: optional("rescue")?.map(|text| from_json("rescue", &text)).transpose()?,
        created: timestamp(row.try_get("created")?)?,
        updated: timestamp(row.try_get("updated")?)?,
        version: row.try_get::<i64, _>("version")? as u64,
    })
}

fn order(seal: &Seal, text: &str) -> Result<Order, StoreError> {
    let order: Order = from_json("order", text)?;
    let run = order.run;
    order.opened(seal, run).map_err(|error| StoreError::Damaged("order", error.into()))
}

pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    what: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| StoreError::Damaged(what, error.into()))
}
