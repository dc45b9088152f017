//! What is in machines in detail, as their installers told last, and how that is to what plans expect.
//!
//! Invariant: what is kept is within its bounds, and is never what a destructive order goes by. What is
//! found in it is not kept: it is asked of the core each time, of the plans as they are then.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rackhand_common::{
    firmware::Place,
    hardware::{Bmc, Hardware},
    id::{MachineId, RackId},
};
use rackhand_controller_core::{
    expects::{Examined, Finding, examine},
    firmware::{Drift, Manifest, Reading, drift},
};

use super::{
    Machine, Plan, Store, StoreError, Tx,
    database::{Executor, query},
    firmware::{manifests, readings},
    from_json, id, json, micros,
    plans::all,
    timestamp,
};

/// What an installer told of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHardware {
    /// When, by the node's clock.
    pub taken: Timestamp,
    /// What.
    pub hardware: Hardware,
}

impl Store {
    /// What is in a machine, when its installer ever told.
    pub async fn hardware(&self, machine: MachineId) -> Result<Option<KnownHardware>, StoreError> {
        one(&self.pool, machine).await
    }

    /// The machines of a rack that told what is in them, each with what its BMC says to it, if it does.
    pub async fn bmcs_in_band(&self, rack: RackId) -> Result<BTreeMap<MachineId, Option<Bmc>>, StoreError> {
        // All the rest of it need not be read.
        let rows = query(
            "SELECT h.id, CASE WHEN h.hardware LIKE '%\"bmc\":%' THEN h.hardware END AS hardware
             FROM machine_hardware h JOIN machines m ON m.id = h.id WHERE m.rack = $1",
        )
        .bind(rack.to_string())
        .fetch_all(&self.pool)
        .await?;
        let mut told = BTreeMap::new();
        for row in rows {
            let hardware: Option<&str> = row.try_get("hardware")?;
            let hardware: Option<Hardware> = hardware.map(|json| from_json("hardware", json)).transpose()?;
            told.insert(id(row.try_get("id")?)?, hardware.and_then(|hardware| hardware.bmc));
        }
        Ok(told)
    }

    /// What is not as it should be in a machine, and by which plan.
    pub async fn examined(&self, machine: &Machine) -> Result<Examined, StoreError> {
        let known = one(&self.pool, machine.id).await?;
        let (mut examined, baseline) = held_against(&all(&self.pool).await?, machine, known.as_ref());
        if !baseline.is_empty() {
            let (manifests, readings) = (manifests(&self.pool).await?, readings(&self.pool, machine).await?);
            let drift = drifted(&baseline, &manifests, readings, machine, known.as_ref());
            examined.findings.extend(drift.into_iter().map(Finding::from));
        }
        Ok(examined)
    }
}

impl Tx {
    /// What is in a machine, when its installer ever told.
    pub async fn hardware(&mut self, machine: MachineId) -> Result<Option<KnownHardware>, StoreError> {
        one(&mut self.inner, machine).await
    }

    /// Takes what an installer told of its machine, in the place of what one told before.
    pub async fn set_hardware(
        &mut self,
        taken: Timestamp,
        machine: MachineId,
        hardware: &Hardware,
    ) -> Result<(), StoreError> {
        query(
            "INSERT INTO machine_hardware (id, taken, hardware) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET taken = $2, hardware = $3",
        )
        .bind(machine.to_string())
        .bind(micros(taken))
        .bind(json(&hardware.clone().sound()))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// What is not as it should be in a machine, and by which plan.
    pub async fn examined(&mut self, machine: &Machine) -> Result<Examined, StoreError> {
        let (mut examined, drift) = self.examined_with_drift(machine).await?;
        examined.findings.extend(drift.into_iter().map(Finding::from));
        Ok(examined)
    }

    /// The same, with what of its firmware is not as its plan has it apart.
    pub async fn examined_with_drift(&mut self, machine: &Machine) -> Result<(Examined, Vec<Drift>), StoreError> {
        let known = one(&mut self.inner, machine.id).await?;
        let (examined, baseline) = held_against(&all(&mut self.inner).await?, machine, known.as_ref());
        if baseline.is_empty() {
            return Ok((examined, Vec::new()));
        }
        let manifests = manifests(&mut self.inner).await?;
        let readings = readings(&mut self.inner, machine).await?;
        let drift = drifted(&baseline, &manifests, readings, machine, known.as_ref());
        Ok((examined, drift))
    }
}

/// What was found, and the names of the firmware that the machine's plan wants.
fn held_against(plans: &[Plan], machine: &Machine, known: Option<&KnownHardware>) -> (Examined, Vec<String>) {
    // Nobody has looked: it lacks what nobody has seen.
    if machine.uninspected.is_some() {
        return (Examined::default(), Vec::new());
    }
    let all = plans.iter().map(|plan| (plan.name.as_str(), &plan.rules));
    let examined = examine(all, &machine.inventory, known.map(|known| &known.hardware));
    let plan = plans.iter().find(|plan| Some(&plan.name) == examined.plan.as_ref());
    let expects = plan.and_then(|plan| plan.rules.expects.as_ref());
    let baseline = expects.map(|expects| expects.baseline.clone()).unwrap_or_default();
    (examined, baseline)
}

/// What of a machine's firmware is not as `baseline` has it, its installer's word for its BIOS among what was
/// read.
fn drifted(
    baseline: &[String],
    manifests: &BTreeMap<String, Manifest>,
    mut readings: Vec<Reading>,
    machine: &Machine,
    known: Option<&KnownHardware>,
) -> Vec<Drift> {
    let bios = known.filter(|known| !known.hardware.bios.version.is_empty());
    readings.extend(bios.map(|known| Reading {
        place: Place::Bios,
        version: known.hardware.bios.version.clone(),
        at: known.taken,
    }));
    drift(baseline, manifests, &machine.inventory, known.map(|known| &known.hardware), &readings)
}

async fn one(executor: impl Into<Executor<'_>>, machine: MachineId) -> Result<Option<KnownHardware>, StoreError> {
    let row = query("SELECT taken, hardware FROM machine_hardware WHERE id = $1")
        .bind(machine.to_string())
        .fetch_optional(executor)
        .await?;
    row.map(|row| {
        Ok(KnownHardware {
            taken: timestamp(row.try_get("taken")?)?,
            hardware: from_json("hardware", row.try_get("hardware")?)?,
        })
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use rackhand_common::hardware::{Board, Dimm};
    use rackhand_controller_core::{expects::Expects, plan::Rules};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    fn with_dimms(slots: &[&str]) -> Hardware {
        let dimm = |slot: &&str| Dimm { slot: (*slot).into(), size: 16 << 30, ..Dimm::default() };
        Hardware { memory: slots.iter().map(dimm).collect(), ..Hardware::default() }
    }

    async fn findings_follow_the_machine_and_the_plan(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let examined = async || bench.store.examined(&machine).await.unwrap();
        assert_eq!(examined().await, Examined::default());

        let mut tx = bench.store.begin().await.unwrap();
        let bmc = Some(Bmc { serial: "SN-1".into(), ..Bmc::default() });
        let told = Hardware { bmc: bmc.clone(), ..with_dimms(&["A1", "A2"]) };
        tx.set_hardware(at(1), machine.id, &told).await.unwrap();
        let known = tx.hardware(machine.id).await.unwrap().unwrap();
        let expects = Some(Expects::suggest(&machine.inventory, &known.hardware));
        let rules = Rules { expects, ..Rules::suggest(&machine.inventory) };
        let plan = tx.insert_plan(at(1), "large", "", &rules).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(examined().await, Examined { plan: Some("large".into()), ..Examined::default() });
        assert_eq!(bench.store.bmcs_in_band(machine.rack).await.unwrap(), [(machine.id, bmc)].into());

        let mut tx = bench.store.begin().await.unwrap();
        tx.set_hardware(at(2), machine.id, &with_dimms(&["A1"])).await.unwrap();
        assert_eq!(tx.examined(&machine).await.unwrap().findings[0].text, "DIMM A2 is missing: 1 of 2");
        tx.commit().await.unwrap();
        assert_eq!(bench.store.hardware(machine.id).await.unwrap().unwrap().taken, at(2));
        assert_eq!(bench.store.bmcs_in_band(machine.rack).await.unwrap(), [(machine.id, None)].into());

        let mut tx = bench.store.begin().await.unwrap();
        let mut plan = tx.plan(&plan.to_string()).await.unwrap();
        plan.rules.expects = None;
        tx.update_plan(&plan).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(examined().await, Examined::default());
    }

    async fn what_an_installer_tells_is_bounded_and_goes_with_its_machine(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let hostile = Hardware {
            board: Board { vendor: format!("\u{1b}[2J{}", "x".repeat(9999)), ..Board::default() },
            ..with_dimms(&["A1"; 5000])
        };
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_hardware(at(1), machine.id, &hostile).await.unwrap();
        let kept = tx.hardware(machine.id).await.unwrap().unwrap().hardware;
        assert_eq!(kept, hostile.sound());
        tx.delete_machine(&machine).await.unwrap();
        assert_eq!(tx.hardware(machine.id).await.unwrap(), None);
        tx.commit().await.unwrap();
    }

    on_both! {
        findings_follow_the_machine_and_the_plan,
        what_an_installer_tells_is_bounded_and_goes_with_its_machine,
    }
}
