//! Agents' registrations and the one-time codes they are made by.
//!
//! Invariants:
//! - A code is used at most once: the row is taken by compare-and-set, in the transaction that
//!   registers the agent.
//! - A registration has the key of the newest certificate seen in use, and that of one issued
//!   since: whichever the node has kept, it can come back with it.
//! - A revoked registration never changes again.
//! - The connection number only rises, also from one agent of a rack to the next; what a connection writes at its end is written only
//!   while its number is still the newest.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use rackhand_common::{
    id::{AgentId, Incarnation, RackId},
    pki::KeyPin,
    wire::Hello,
};
use rackhand_controller_core::access::Sight;

use super::{
    Store, StoreError, Tx,
    database::{Builder, Executor, Row, query, query_scalar},
    id, micros,
    places::Columns,
    timestamp,
};

/// A node's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Names it.
    pub id: AgentId,
    /// The rack it serves.
    pub rack: RackId,
    /// Key of the newest certificate it has used.
    pub key: KeyPin,
    /// Key of a certificate issued to it since.
    pub next_key: Option<KeyPin>,
    /// Fingerprint of the trust bundle on its disk, as last acknowledged.
    pub bundle: Option<String>,
    /// The root that the certificate it used last comes from.
    pub root: Option<KeyPin>,
    /// End of its newest certificate.
    pub certificate_until: Timestamp,
    /// The process that connected last.
    pub incarnation: Option<Incarnation>,
    /// Number of its newest connection, or before its first that of the rack's agents before it.
    pub connection: u64,
    /// Number of the event it should send next: all lower ones are taken.
    pub next_event: u64,
    /// Revision of the intent on its disk, as last acknowledged.
    pub revision: u64,
    /// Version of its software.
    pub version: Option<String>,
    /// When it was registered.
    pub enrolled: Timestamp,
    /// Since when it is connected; `None` while it is not.
    pub connected: Option<Timestamp>,
    /// When it was last connected.
    pub seen: Option<Timestamp>,
    /// From when on it is no longer let in.
    pub revoked: Option<Timestamp>,
}

/// Where an agent's metrics are to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The agent.
    pub agent: AgentId,
    /// Version of its software.
    pub version: Option<String>,
    /// Address and port.
    pub at: String,
    /// What its rack is called.
    pub rack: String,
    /// What the rack's site is called.
    pub site: String,
}

impl Agent {
    /// Whether this is the registered key, or the one that is to follow it.
    pub fn has(&self, key: KeyPin) -> bool {
        self.key == key || self.next_key == Some(key)
    }
}

impl Store {
    /// The agent with this id.
    pub async fn agent(&self, id: AgentId) -> Result<Agent, StoreError> {
        agent(&self.pool, id).await
    }

    /// Agents in the order of their enrolment, after `after`, at most `limit`.
    pub async fn agents(&self, sight: &Sight, after: Option<AgentId>, limit: u32) -> Result<Vec<Agent>, StoreError> {
        let mut query =
            Builder::new("SELECT agents.* FROM agents JOIN racks ON racks.id = agents.rack WHERE agents.id > ");
        query.push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        let columns = Columns { site: Some("racks.site"), rack: Some("agents.rack"), ..Columns::default() };
        columns.push(&mut query, sight);
        query.push(" ORDER BY agents.id LIMIT ").push_bind(limit);
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// Notes where an agent's metrics are to be had.
    pub async fn note_metrics(&self, id: AgentId, at: Option<SocketAddr>) -> Result<(), StoreError> {
        query("UPDATE agents SET metrics = $2 WHERE id = $1 AND COALESCE(metrics, '') <> COALESCE($2, '')")
            .bind(id.to_string())
            .bind(at.map(|at| at.to_string()))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Where metrics are to be had: of all agents that are let in.
    pub async fn metrics(&self, sight: &Sight) -> Result<Vec<Measured>, StoreError> {
        let mut query = Builder::new(
            "SELECT agents.id, agents.version, agents.metrics, racks.name AS rack_name, sites.name AS site_name
             FROM agents JOIN racks ON racks.id = agents.rack JOIN sites ON sites.id = racks.site
             WHERE agents.revoked IS NULL AND agents.metrics IS NOT NULL",
        );
        let columns = Columns { site: Some("racks.site"), rack: Some("agents.rack"), ..Columns::default() };
        columns.push(&mut query, sight);
        query.push(" ORDER BY agents.id");
        let rows = query.build().fetch_all(&self.pool).await?;
        let read = |row: &Row| {
            Ok(Measured {
                agent: id(row.try_get("id")?)?,
                version: row.try_get("version")?,
                at: row.try_get("metrics")?,
                rack: row.try_get("rack_name")?,
                site: row.try_get("site_name")?,
            })
        };
        rows.iter().map(read).collect()
    }

    /// The agents of a rack, revoked ones too.
    pub async fn agents_of(&self, rack: RackId) -> Result<Vec<Agent>, StoreError> {
        agents_of(&self.pool, rack).await
    }
}

impl Tx {
    /// The agent with this id.
    pub async fn agent(&mut self, id: AgentId) -> Result<Agent, StoreError> {
        agent(&mut self.inner, id).await
    }

    /// Keeps the hash of a fresh code, which may be used from `source`, or from anywhere.
    pub async fn insert_code(
        &mut self,
        now: Timestamp,
        hash: &[u8; 32],
        rack: RackId,
        expires: Timestamp,
        source: Option<IpNet>,
    ) -> Result<(), StoreError> {
        self.watch("enrolment_codes", hex::encode(hash)).await?;
        query("INSERT INTO enrolment_codes (hash, rack, created, expires, source) VALUES ($1, $2, $3, $4, $5)")
            .bind(hex::encode(hash))
            .bind(rack.to_string())
            .bind(micros(now))
            .bind(micros(expires))
            .bind(source.map(|source| source.trunc().to_string()))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Voids the codes of this rack that were not used.
    pub async fn void_codes(&mut self, now: Timestamp, rack: RackId) -> Result<(), StoreError> {
        let open = "SELECT hash FROM enrolment_codes WHERE rack = $1 AND used IS NULL AND expires > $2";
        let open = query_scalar(open).bind(rack.to_string()).bind(micros(now));
        let codes: Vec<String> = open.fetch_all(&mut self.inner).await?;
        for code in codes {
            self.watch("enrolment_codes", code).await?;
        }
        query("UPDATE enrolment_codes SET expires = $2 WHERE rack = $1 AND used IS NULL AND expires > $2")
            .bind(rack.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// The agents of a rack, revoked ones too.
    pub async fn agents_of(&mut self, rack: RackId) -> Result<Vec<Agent>, StoreError> {
        agents_of(&mut self.inner, rack).await
    }

    /// Uses up a code that is neither used nor expired and may be used from there; gives its
    /// rack. No row tells which of wrong, used, expired and from elsewhere it was, and neither does
    /// the error.
    pub async fn redeem(
        &mut self,
        now: Timestamp,
        hash: &[u8; 32],
        agent: AgentId,
        from: IpAddr,
    ) -> Result<RackId, StoreError> {
        let source: Option<Option<String>> = query_scalar("SELECT source FROM enrolment_codes WHERE hash = $1")
            .bind(hex::encode(hash))
            .fetch_optional(&mut self.inner)
            .await?;
        if let Some(source) = source.flatten() {
            let source: IpNet = source.parse().map_err(|error| StoreError::Damaged("source", Box::new(error)))?;
            if !source.contains(&from.to_canonical()) {
                return Err(StoreError::NotFound("enrolment code"));
            }
        }
        let rack: Option<String> = query_scalar(
            "UPDATE enrolment_codes SET used = $2, used_by = $3
             WHERE hash = $1 AND used IS NULL AND expires > $2 RETURNING rack",
        )
        .bind(hex::encode(hash))
        .bind(micros(now))
        .bind(agent.to_string())
        .fetch_optional(&mut self.inner)
        .await?;
        let rack = rack.ok_or(StoreError::NotFound("enrolment code"))?;
        rack.parse().map_err(|e| StoreError::Damaged("id", Box::new(e)))
    }

    /// Registers an agent. An earlier one of the same rack is revoked: a rack has one node, and
    /// whoever enrols another has said that the old one is gone. Gives those revoked.
    pub async fn insert_agent(
        &mut self,
        now: Timestamp,
        id: AgentId,
        rack: RackId,
        key: KeyPin,
        until: Timestamp,
    ) -> Result<Vec<AgentId>, StoreError> {
        let revoked: Vec<String> = query_scalar(
            "UPDATE agents SET revoked = $2, connected = NULL WHERE rack = $1 AND revoked IS NULL RETURNING id",
        )
        .bind(rack.to_string())
        .bind(micros(now))
        .fetch_all(&mut self.inner)
        .await?;
        // Connections of a rack are numbered through, whichever of its nodes makes them.
        query(
            "INSERT INTO agents (id, rack, key_pin, cert_until, enrolled, connection)
             VALUES ($1, $2, $3, $4, $5, (SELECT COALESCE(MAX(connection), 0) FROM agents WHERE rack = $2))",
        )
        .bind(id.to_string())
        .bind(rack.to_string())
        .bind(key.to_string())
        .bind(micros(until))
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        revoked.iter().map(|old| super::id(old)).collect()
    }

    /// No connection of this agent is served from now on. Whether it was let in until now.
    pub async fn revoke(&mut self, now: Timestamp, id: AgentId) -> Result<bool, StoreError> {
        self.watch("agents", id).await?;
        let changed = query("UPDATE agents SET revoked = $2, connected = NULL WHERE id = $1 AND revoked IS NULL")
            .bind(id.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// A further certificate was issued to the agent.
    pub async fn issued(&mut self, id: AgentId, key: KeyPin, until: Timestamp) -> Result<(), StoreError> {
        let changed = query("UPDATE agents SET next_key_pin = $2, cert_until = $3 WHERE id = $1 AND revoked IS NULL")
            .bind(id.to_string())
            .bind(key.to_string())
            .bind(micros(until))
            .execute(&mut self.inner)
            .await?;
        if changed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NotFound("agent")) }
    }

    /// The agent has connected: counts its connection and gives its row as it is now. After a
    /// database was restored from an older copy the number still is higher than any it was
    /// welcomed with before, unless it claims one that cannot be. `key` and `root` are those of
    /// the certificate it used.
    pub async fn welcome(
        &mut self,
        now: Timestamp,
        id: AgentId,
        (key, root): (KeyPin, Option<KeyPin>),
        hello: &Hello,
    ) -> Result<Agent, StoreError> {
        // One connection in every microsecond for eight years.
        let known = i64::try_from(hello.connection).ok().filter(|known| *known < 1 << 48).unwrap_or(0);
        let version: String = hello.version.chars().take(64).collect();
        let row = query(
            "UPDATE agents
             SET connection = CASE WHEN connection > $2 THEN connection ELSE $2 END + 1,
                 incarnation = $3, version = $4, revision = $5, connected = $6, seen = $6,
                 root = $8,
                 key_pin = CASE WHEN next_key_pin = $7 THEN $7 ELSE key_pin END,
                 next_key_pin = CASE WHEN next_key_pin = $7 THEN NULL ELSE next_key_pin END
             WHERE id = $1 AND revoked IS NULL RETURNING *",
        )
        .bind(id.to_string())
        .bind(known)
        .bind(hello.incarnation.to_string())
        .bind(version)
        .bind(i64::try_from(hello.revision).unwrap_or(0))
        .bind(micros(now))
        .bind(key.to_string())
        .bind(root.map(|root| root.to_string()))
        .fetch_optional(&mut self.inner)
        .await?
        .ok_or(StoreError::NotFound("agent"))?;
        read(&row)
    }

    /// The agent has the trust bundle with this fingerprint on its disk.
    pub async fn trusts(&mut self, id: AgentId, bundle: &str) -> Result<(), StoreError> {
        query("UPDATE agents SET bundle = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(bundle)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// The agent has this revision on its disk.
    pub async fn acknowledged(&mut self, now: Timestamp, id: AgentId, revision: u64) -> Result<(), StoreError> {
        query("UPDATE agents SET revision = $2, seen = $3 WHERE id = $1")
            .bind(id.to_string())
            .bind(i64::try_from(revision).unwrap_or(0))
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// All events with lower numbers are taken.
    pub async fn set_next_event(&mut self, id: AgentId, next: u64) -> Result<(), StoreError> {
        query("UPDATE agents SET next_event = $2 WHERE id = $1 AND next_event <= $2")
            .bind(id.to_string())
            .bind(next as i64)
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// This connection has ended; changes nothing when there is a newer one.
    pub async fn disconnected(&mut self, now: Timestamp, id: AgentId, connection: u64) -> Result<(), StoreError> {
        query("UPDATE agents SET connected = NULL, seen = $3 WHERE id = $1 AND connection = $2")
            .bind(id.to_string())
            .bind(connection as i64)
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// No agent is connected: to be called at the controller's start.
    pub async fn forget_connections(&mut self) -> Result<(), StoreError> {
        query("UPDATE agents SET connected = NULL").execute(&mut self.inner).await?;
        Ok(())
    }
}

async fn agents_of(executor: impl Into<Executor<'_>>, rack: RackId) -> Result<Vec<Agent>, StoreError> {
    query("SELECT * FROM agents WHERE rack = $1 ORDER BY id")
        .bind(rack.to_string())
        .fetch_all(executor)
        .await?
        .iter()
        .map(read)
        .collect()
}

async fn agent(executor: impl Into<Executor<'_>>, id: AgentId) -> Result<Agent, StoreError> {
    let row = query("SELECT * FROM agents WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(executor)
        .await?
        .ok_or(StoreError::NotFound("agent"))?;
    read(&row)
}

fn read(row: &Row) -> Result<Agent, StoreError> {
    let optional = |column| row.try_get::<Option<i64>, _>(column).map_err(StoreError::from)?.map(timestamp).transpose();
    let incarnation = row.try_get::<Option<&str>, _>("incarnation")?.map(str::parse).transpose();
    let pin = |column| {
        let pin = row.try_get::<Option<&str>, _>(column)?.map(str::parse::<KeyPin>).transpose();
        pin.map_err(|e| StoreError::Damaged("key pin", Box::new(e)))
    };
    Ok(Agent {
        id: row.try_get::<&str, _>("id")?.parse().map_err(|e| StoreError::Damaged("id", Box::new(e)))?,
        rack: row.try_get::<&str, _>("rack")?.parse().map_err(|e| StoreError::Damaged("id", Box::new(e)))?,
        key: row.try_get::<&str, _>("key_pin")?.parse().map_err(|e| StoreError::Damaged("key pin", Box::new(e)))?,
        next_key: pin("next_key_pin")?,
        bundle: row.try_get("bundle")?,
        root: pin("root")?,
        certificate_until: timestamp(row.try_get("cert_until")?)?,
        incarnation: incarnation.map_err(|e| StoreError::Damaged("id", Box::new(e)))?,
        connection: row.try_get::<i64, _>("connection")? as u64,
        next_event: row.try_get::<i64, _>("next_event")? as u64,
        revision: row.try_get::<i64, _>("revision")? as u64,
        version: row.try_get("version")?,
        enrolled: timestamp(row.try_get("enrolled")?)?,
        connected: optional("connected")?,
        seen: optional("seen")?,
        revoked: optional("revoked")?,
    })
}
