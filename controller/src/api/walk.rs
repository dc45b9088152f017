//! Every operation, asked for by every role at every scope: let in or refused as the table of roles
//! has it, through the real router.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use expect_test::expect;
use jiff::Timestamp;
use rackhand_common::{
    erasure::DriveErasure,
    id::{OrganisationId, PersonId, ProjectId, RackId, SiteId},
};
use rackhand_controller_core::{
    access::{Action, Binding, Place, Role, Scope},
    campaign,
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::{
    access::{Access, At, TABLE, Table},
    tests::{Bench, discovered},
    *,
};
use crate::store::{self, NewToken, Thing, tests::On};

/// A machine, a claim and whatever else there is, in rack `lab` of site `here` and given to project
/// `acme:shop`; beside them another organisation, project, site and rack.
pub(super) struct World {
    pub(super) bench: Bench,
    /// The value of each parameter of a path.
    pub(super) names: BTreeMap<&'static str, String>,
    /// Where the machine, its claim and its run stand.
    place: Place,
    /// Every scope, with what it is to the place.
    pub(super) scopes: Vec<(&'static str, Scope)>,
    /// Somebody to give roles to.
    bob: PersonId,
    fresh: std::cell::Cell<u32>,
    /// The address that an operation about one is asked of.
    held: std::cell::RefCell<String>,
}

fn id<T: std::str::FromStr<Err = uuid::Error>>(value: &Value) -> T {
    value["id"].as_str().unwrap_or_else(|| panic!("{value}")).parse().unwrap()
}

impl World {
    pub(super) async fn new(on: On) -> Self {
        let bench = Bench::new(on).await;
        let machine = discovered(&bench).await;
        let post = async |uri: &str, body: Value| {
            let (status, answer) = bench.ask(Method::POST, uri, body.to_string()).await;
            assert!(status.is_success(), "{uri}: {answer}");
            answer
        };
        let (acme, other) = (
            post("/v1/organisations", json!({"name": "acme"})).await,
            post("/v1/organisations", json!({"name": "other"})).await,
        );
        let shop = post("/v1/projects", json!({"name": "shop", "organisation": "acme"})).await;
        // Names are one organisation's own.
        let theirs = post("/v1/projects", json!({"name": "theirs", "organisation": "other"})).await;
        let (here, there) =
            (post("/v1/sites", json!({"name": "here"})).await, post("/v1/sites", json!({"name": "there"})).await);
        let network = json!({"node": "10.78.0.1/24", "delegated": ["10.78.0.100", "10.78.0.199"]});
        let far = post("/v1/racks", json!({"name": "far", "network": network, "site": "there"})).await;
        let moved = json!({"site": "here"}).to_string();
        let (_, lab) = bench.ask(Method::PATCH, "/v1/racks/lab", moved).await;
        let body = json!({"accept_data": true}).to_string();
        assert_eq!(bench.ask(Method::POST, &format!("/v1/machines/{machine}/adopt"), body).await.0, StatusCode::OK);
        post(&format!("/v1/machines/{machine}/assign"), json!({"project": "acme:shop"})).await;
        post("/v1/aggregates", json!({"prefix": "10.0.0.0/8", "source": "private"})).await;
        let grants = json!([{"to": "everyone", "may": ["assign", "announce", "reverse"]}]);
        let pool = json!({"name": "p4", "kind": "private", "prefixes": ["10.9.0.0/16"], "grants": grants});
        post("/v1/pools", pool).await;
        let bmc = json!({"address": "10.20.0.5", "user": "admin", "password": "secret"}).to_string();
        let reached = bench.ask(Method::PUT, &format!("/v1/racks/lab/bmcs/{machine}"), bmc).await;
        assert_eq!(reached.0, StatusCode::OK, "{}", reached.1);
        let claim = post("/v1/claims", json!({"pool": "p4", "machine": machine, "project": "shop"})).await;
        let run = post(&format!("/v1/machines/{machine}/power"), json!({"action": "on"})).await;
        let erasure = {
            let mut tx = bench.app.store.begin().await.unwrap();
            let machine = tx.machine(&machine).await.unwrap().id;
            let run = run["id"].as_str().unwrap().parse().unwrap();
            let certificate = store::tests::erasure(run, machine, DriveErasure::example("d1"));
            let signed = crate::events::unsigned(certificate.clone());
            tx.insert_erasure(id(&lab), &certificate, &signed).await.unwrap();
            tx.commit().await.unwrap();
            certificate.erasure.to_string()
        };
        let campaign = {
            let mut tx = bench.app.store.begin().await.unwrap();
            let (now, rules) = (Timestamp::UNIX_EPOCH, campaign::Rules { at_most: 10, stop_after: 1 });
            let campaign = crate::campaigns::choose(&mut tx, now, id(&lab), None, rules, "admin").await.unwrap();
            tx.insert_campaign(&campaign).await.unwrap();
            tx.commit().await.unwrap();
            campaign.id.to_string()
        };
        let bob = post("/v1/people", json!({"name": "bob"})).await;
        let (_, agents) = bench.ask(Method::GET, "/v1/agents", "").await;
        let place = Place {
            organisation: Some(id(&acme)),
            project: Some(id(&shop)),
            site: Some(id(&here)),
            rack: Some(id(&lab)),
        };
        let scopes = vec![
            ("everything", Scope::Everything),
            ("its organisation", Scope::Organisation(id::<OrganisationId>(&acme))),
            ("another organisation", Scope::Organisation(id(&other))),
            ("its project", Scope::Project(id::<ProjectId>(&shop))),
            ("another project", Scope::Project(id(&theirs))),
            ("its site", Scope::Site(id::<SiteId>(&here))),
            ("another site", Scope::Site(id(&there))),
            ("its rack", Scope::Rack(id::<RackId>(&lab))),
            ("another rack", Scope::Rack(id(&far))),
        ];
        let text = |value: &Value| value["id"].as_str().unwrap().to_owned();
        let names = BTreeMap::from([
            ("organisation", text(&acme)),
            ("project", "acme:shop".to_owned()),
            ("site", text(&here)),
            ("rack", text(&lab)),
            ("machine", machine),
            ("claim", text(&claim)),
            ("run", text(&run)),
            ("erasure", erasure),
            ("agent", text(&agents["items"][0])),
            ("address", "10.9.0.0".to_owned()),
            ("what", "sensors".to_owned()),
            // Of what is everywhere: what is not there, so that nothing is removed.
            ("person", "nobody".to_owned()),
            ("image", "absent".to_owned()),
            ("plan", "absent".to_owned()),
            ("firmware", "absent".to_owned()),
            ("campaign", campaign),
            ("os", "absent".to_owned()),
            ("pool", "absent".to_owned()),
            ("aggregate", text(&acme)),
            ("token", text(&acme)),
            ("key", text(&acme)),
        ]);
        Self {
            bob: id(&bob),
            bench,
            names,
            place,
            scopes,
            fresh: std::cell::Cell::new(0),
            held: "10.9.0.0".to_owned().into(),
        }
    }

    /// Where a kind of thing stands.
    fn place_of(&self, thing: Thing) -> Place {
        let Place { organisation, project, site, rack } = self.place;
        match thing {
            Thing::Organisation => Place { organisation, ..Place::EVERYTHING },
            Thing::Project | Thing::Binding => Place { organisation, project, ..Place::EVERYTHING },
            Thing::Site => Place { site, ..Place::EVERYTHING },
            Thing::Rack | Thing::Agent => Place { site, rack, ..Place::EVERYTHING },
            Thing::Machine | Thing::Run | Thing::Claim | Thing::Erasure => self.place,
            Thing::Pool | Thing::Token => Place::EVERYTHING,
        }
    }

    /// A token of a person who has one role at one scope.
    pub(super) async fn token(&self, name: &str, binding: Binding) -> String {
        let (token, hash) = fresh_token();
        let mut tx = self.bench.app.store.begin().await.unwrap();
        let person = tx.insert_person(Timestamp::UNIX_EPOCH, name, "").await.unwrap().id;
        tx.insert_binding(Timestamp::UNIX_EPOCH, person, binding, Some("admin")).await.unwrap();
        let new = NewToken {
            name: "walk",
            owner: Owner::Person(person),
            hash: &hash,
            prefix: "rh_",
            actions: None,
            scopes: None,
            is_login: false,
            expires: None,
        };
        tx.insert_token(Timestamp::UNIX_EPOCH, new).await.unwrap();
        tx.commit().await.unwrap();
        token
    }

    /// A body that only those are refused for who may not; of what names its place in the path,
    /// one that nobody is obeyed for.
    async fn body(&self, method: &Method, path: &str) -> (String, Place) {
        let number = self.fresh.get();
        self.fresh.set(number + 1);
        let network = json!({"node": "10.79.0.1/24", "delegated": ["10.79.0.100", "10.79.0.199"]});
        let (site, project) = (self.place_of(Thing::Site), self.place_of(Thing::Project));
        let (body, place) = match (method.as_str(), path) {
            ("POST", "/v1/projects") => {
                let name = format!("p{number}");
                (json!({"name": name, "organisation": "acme"}), self.place_of(Thing::Organisation))
            }
            ("POST", "/v1/racks") => (json!({"name": format!("r{number}"), "network": network, "site": "here"}), site),
            ("POST", "/v1/bindings") => {
                let mut tx = self.bench.app.store.begin().await.unwrap();
                for binding in tx.bindings_of(self.bob).await.unwrap() {
                    tx.delete_binding(binding.id).await.unwrap();
                }
                tx.commit().await.unwrap();
                let scope = json!({"kind": "project", "name": "acme:shop"});
                (json!({"person": "bob", "role": "viewer", "scope": scope}), project)
            }
            (_, "/v1/addresses/{address}/name") => {
                // One that no other operation has released meanwhile, with a name to be taken away.
                let wish = json!({"pool": "p4", "machine": self.names["machine"]}).to_string();
                let (_, claim) = self.bench.ask(Method::POST, "/v1/claims", wish).await;
                let address = claim["first"].as_str().unwrap_or_else(|| panic!("{claim}")).to_owned();
                let named = json!({"name": "web-1.example.net"});
                let uri = format!("/v1/addresses/{address}/name");
                assert_eq!(self.bench.ask(Method::PUT, &uri, named.to_string()).await.0, StatusCode::OK);
                self.held.replace(address);
                (named, self.place)
            }
            ("POST", "/v1/claims") => (json!({"pool": "p4", "name": "x", "project": "acme:shop"}), project),
            _ => (json!({"no": "such field"}), Place::EVERYTHING),
        };
        (body.to_string(), place)
    }

    /// The path with its parameters, of something that is there.
    async fn uri(&self, path: &str) -> String {
        let Some((start, rest)) = path.split_once('{') else { return path.into() };
        let (parameter, rest) = rest.split_once('}').unwrap();
        if rest == "/name" {
            return format!("{start}{}{rest}", self.held.borrow());
        }
        if parameter != "binding" {
            let rest = Box::pin(self.uri(rest)).await;
            return format!("{start}{}{rest}", self.names[parameter]);
        }
        let mut tx = self.bench.app.store.begin().await.unwrap();
        for binding in tx.bindings_of(self.bob).await.unwrap() {
            tx.delete_binding(binding.id).await.unwrap();
        }
        let scope = Scope::Project(self.place.project.unwrap());
        let viewer = Binding { role: Role::Viewer, scope };
        let binding = tx.insert_binding(Timestamp::UNIX_EPOCH, self.bob, viewer, Some("admin")).await.unwrap();
        tx.commit().await.unwrap();
        format!("{start}{}{rest}", binding.id)
    }

    /// Asks for every operation with every role at every scope; what went otherwise than `may` has it. (A stream does not end, and is let in as its list.)
    async fn walk(
        &self,
        table: Table,
        may: impl Fn(Role, Action) -> bool,
        place_of: impl Fn(Thing) -> Place,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        // Making one describes the whole API.
        let router = router_with(self.bench.app.clone(), table);
        for role in Role::ALL {
            for (name, scope) in &self.scopes {
                let unique = format!("{role}-{}-{}", name.replace(' ', "-"), self.fresh.get());
                let token = self.token(&unique, Binding { role, scope: *scope }).await;
                for (method, path, access) in table {
                    // It does not end.
                    if path.ends_with("/stream") {
                        continue;
                    }
                    let (body, told) = self.body(method, path).await;
                    let permits = |action, place| may(role, action) && scope.contains(place);
                    let expected = match access {
                        Access::Anyone | Access::Caller | Access::Own => "let in",
                        Access::May(action, At::Everything) if permits(*action, Place::EVERYTHING) => "let in",
                        Access::May(action, At::Anywhere) if may(role, *action) => "let in",
                        Access::May(action, At::Body) if permits(*action, told) => "let in",
                        Access::May(action, At::Body) if may(role, *action) => "refused",
                        Access::May(action, At::Named(thing)) => {
                            let (place, read) = (place_of(*thing), action.reads().unwrap());
                            match (permits(read, place), permits(*action, place)) {
                                (true, true) => "let in",
                                (true, false) => "403",
                                (false, _) => "404",
                            }
                        }
                        Access::May(..) => "403",
                    };
                    let request = axum::http::Request::builder()
                        .method(method)
                        .uri(self.uri(path).await)
                        .header("authorization", format!("Bearer {token}"))
                        .header("content-type", "application/json")
                        .header("if-match", "\"0\"")
                        .body(axum::body::Body::from(body))
                        .unwrap();
                    let status = router.clone().oneshot(request).await.unwrap().status();
                    let is_named = matches!(access, Access::May(_, At::Named(_)));
                    let seen = match status {
                        StatusCode::FORBIDDEN => "403",
                        StatusCode::NOT_FOUND if is_named => "404",
                        StatusCode::UNAUTHORIZED if *path != "/v1/login" => "401",
                        StatusCode::NOT_FOUND if matches!(access, Access::May(_, At::Body)) => "404",
                        _ => "let in",
                    };
                    let is_right = expected == seen || expected == "refused" && matches!(seen, "403" | "404");
                    if !is_right {
                        wrong.push(format!("{method} {path} as {role} of {name}: {status}, not {expected}"));
                    }
                }
            }
        }
        wrong
    }
}

/// Operations of the published document that no row is about.
fn missing(table: Table) -> Vec<String> {
    let document = serde_json::to_value(document()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        operations.extend(item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    let is_there = |(method, path): &(String, String)| {
        table.iter().any(|(known, pattern, _)| known.as_str() == method && pattern == path)
    };
    operations.into_iter().filter(|one| !is_there(one)).map(|(method, path)| format!("{method} {path}")).collect()
}

#[test]
fn each_operation_is_this_action_at_this_place() {
    let mut lines = String::new();
    for (method, path, access) in TABLE {
        let access = match access {
            Access::Anyone => "anyone".into(),
            Access::Caller => "any token".into(),
            Access::Own => "own things".into(),
            Access::May(action, At::Named(thing)) => format!("{action} where the {} is", thing.word()),
            Access::May(action, at) => format!("{action} {at:?}").to_lowercase(),
        };
        lines += &format!("{:7}{path}: {access}\n", method.as_str());
    }
    expect![[r#"
        GET    /v1/openapi.json: anyone
        POST   /v1/login: anyone
        POST   /v1/login/oidc: anyone
        POST   /v1/login/oidc/finish: anyone
        GET    /v1/whoami: any token
        GET    /v1/roles: any token
        PUT    /v1/password: own things
        POST   /v1/totp: own things
        POST   /v1/totp/confirm: own things
        POST   /v1/totp/remove: own things
        GET    /v1/tokens: own things
        POST   /v1/tokens: own things
        DELETE /v1/tokens/{token}: own things
        GET    /v1/ssh-keys: own things
        POST   /v1/ssh-keys: own things
        DELETE /v1/ssh-keys/{key}: own things
        GET    /v1/ssh: any token
        GET    /v1/organisations: organisation.read anywhere
        POST   /v1/organisations: organisation.manage everything
        GET    /v1/organisations/{organisation}: organisation.read where the organisation is
        PATCH  /v1/organisations/{organisation}: organisation.manage where the organisation is
        DELETE /v1/organisations/{organisation}: organisation.manage where the organisation is
        GET    /v1/projects: project.read anywhere
        POST   /v1/projects: project.manage body
        GET    /v1/projects/{project}: project.read where the project is
        PATCH  /v1/projects/{project}: project.manage where the project is
        DELETE /v1/projects/{project}: project.manage where the project is
        GET    /v1/sites: site.read anywhere
        POST   /v1/sites: site.manage everything
        GET    /v1/sites/{site}: site.read where the site is
        PATCH  /v1/sites/{site}: site.manage where the site is
        DELETE /v1/sites/{site}: site.manage where the site is
        GET    /v1/people: person.read everything
        POST   /v1/people: person.manage everything
        GET    /v1/people/{person}: person.read everything
        PATCH  /v1/people/{person}: person.manage everything
        DELETE /v1/people/{person}: person.manage everything
        GET    /v1/bindings: role.read anywhere
        POST   /v1/bindings: role.grant body
        DELETE /v1/bindings/{binding}: role.grant where the binding is
        GET    /v1/racks: rack.read anywhere
        POST   /v1/racks: rack.manage body
        GET    /v1/racks/{rack}: rack.read where the rack is
        PATCH  /v1/racks/{rack}: rack.manage where the rack is
        POST   /v1/racks/{rack}/enrolment-codes: agent.enrol where the rack is
        GET    /v1/racks/{rack}/bmcs: rack.read where the rack is
        GET    /v1/racks/{rack}/bmcs/{machine}: rack.read where the rack is
        PUT    /v1/racks/{rack}/bmcs/{machine}: rack.manage where the rack is
        DELETE /v1/racks/{rack}/bmcs/{machine}: rack.manage where the rack is
        GET    /v1/racks/{rack}/bmcs/{machine}/{what}: rack.read where the rack is
        POST   /v1/racks/{rack}/bmcs/{machine}/rotate: rack.manage where the rack is
        POST   /v1/racks/{rack}/bmcs/{machine}/regain: rack.manage where the rack is
        GET    /v1/racks/{rack}/found-bmcs: rack.read where the rack is
        GET    /v1/racks/{rack}/expected-bmcs: rack.read where the rack is
        POST   /v1/racks/{rack}/expected-bmcs: rack.manage where the rack is
        DELETE /v1/racks/{rack}/expected-bmcs: rack.manage where the rack is
        POST   /v1/racks/{rack}/running-machines: machine.adopt where the rack is
        GET    /v1/prometheus/targets: agent.read anywhere
        GET    /v1/agents: agent.read anywhere
        POST   /v1/agents/{agent}/revoke: agent.revoke where the agent is
        POST   /v1/agents/{agent}/replace: agent.revoke where the agent is
        GET    /v1/machines: machine.read anywhere
        GET    /v1/machines/{machine}: machine.read where the machine is
        PATCH  /v1/machines/{machine}: machine.adopt where the machine is
        POST   /v1/machines/{machine}/adopt: machine.adopt where the machine is
        DELETE /v1/machines/{machine}: machine.forget where the machine is
        POST   /v1/machines/{machine}/replace-part: machine.adopt where the machine is
        POST   /v1/machines/{machine}/merge: machine.forget where the machine is
        POST   /v1/machines/{machine}/assign: machine.assign where the machine is
        POST   /v1/machines/{machine}/deploy: machine.deploy where the machine is
        POST   /v1/machines/{machine}/release: machine.release where the machine is
        POST   /v1/machines/{machine}/power: machine.power where the machine is
        POST   /v1/machines/{machine}/reinstall: machine.deploy where the machine is
        POST   /v1/machines/{machine}/rescue: machine.deploy where the machine is
        POST   /v1/machines/{machine}/leave-rescue: machine.deploy where the machine is
        POST   /v1/machines/{machine}/inspect: machine.maintain where the machine is
        POST   /v1/machines/{machine}/test: machine.maintain where the machine is
        GET    /v1/machines/{machine}/tests: machine.read where the machine is
        POST   /v1/machines/{machine}/maintain: machine.maintain where the machine is
        POST   /v1/machines/{machine}/resume: machine.maintain where the machine is
        POST   /v1/machines/{machine}/quarantine: machine.maintain where the machine is
        POST   /v1/machines/{machine}/retire: machine.maintain where the machine is
        GET    /v1/machines/{machine}/baseline: machine.adopt where the machine is
        POST   /v1/machines/{machine}/baseline/read: machine.adopt where the machine is
        POST   /v1/machines/{machine}/baseline/accept: machine.adopt where the machine is
        GET    /v1/machines/{machine}/hardware: machine.read where the machine is
        GET    /v1/machines/{machine}/health: machine.read where the machine is
        PUT    /v1/machines/{machine}/health/override: machine.adopt where the machine is
        DELETE /v1/machines/{machine}/health/override: machine.adopt where the machine is
        GET    /v1/machines/{machine}/health/series: machine.read where the machine is
        GET    /v1/machines/{machine}/console: machine.power where the machine is
        GET    /v1/machines/{machine}/console/log: machine.power where the machine is
        GET    /v1/images: image.read anywhere
        POST   /v1/images: image.manage everything
        GET    /v1/images/{image}: image.read anywhere
        PUT    /v1/images/{image}: image.manage everything
        PATCH  /v1/images/{image}: image.manage everything
        DELETE /v1/images/{image}: image.manage everything
        POST   /v1/images/{image}/check: image.manage everything
        GET    /v1/firmware: image.read anywhere
        POST   /v1/firmware: image.manage everything
        GET    /v1/firmware/{firmware}: image.read anywhere
        PUT    /v1/firmware/{firmware}/file: image.manage everything
        DELETE /v1/firmware/{firmware}: image.manage everything
        POST   /v1/machines/{machine}/update-firmware: machine.maintain where the machine is
        GET    /v1/machines/{machine}/firmware-updates: machine.read where the machine is
        GET    /v1/racks/{rack}/firmware-campaigns: rack.read where the rack is
        POST   /v1/racks/{rack}/firmware-campaigns: machine.maintain where the rack is
        GET    /v1/racks/{rack}/firmware-campaigns/{campaign}: rack.read where the rack is
        PATCH  /v1/racks/{rack}/firmware-campaigns/{campaign}: machine.maintain where the rack is
        GET    /v1/plans: image.read anywhere
        POST   /v1/plans: image.manage everything
        GET    /v1/plans/{plan}: image.read anywhere
        PATCH  /v1/plans/{plan}: image.manage everything
        DELETE /v1/plans/{plan}: image.manage everything
        GET    /v1/plans/{plan}/machines: machine.read anywhere
        GET    /v1/machines/{machine}/plans: machine.read where the machine is
        GET    /v1/machines/{machine}/suggested-plan: machine.read where the machine is
        GET    /v1/operating-systems: image.read anywhere
        GET    /v1/operating-systems/{os}: image.read anywhere
        GET    /v1/operating-systems/{os}/kickstart: image.read anywhere
        GET    /v1/machines/{machine}/erasures: machine.read where the machine is
        GET    /v1/erasures: machine.read anywhere
        GET    /v1/erasures/{erasure}: machine.read where the erasure is
        GET    /v1/runs: run.read anywhere
        GET    /v1/runs/{run}: run.read where the run is
        POST   /v1/runs/{run}/cancel: run.cancel where the run is
        POST   /v1/runs/{run}/retry: run.read where the run is
        GET    /v1/runs/{run}/logs: run.read where the run is
        GET    /v1/vrfs: address.read anywhere
        POST   /v1/vrfs: address.space everything
        GET    /v1/aggregates: address.space everything
        POST   /v1/aggregates: address.space everything
        DELETE /v1/aggregates/{aggregate}: address.space everything
        POST   /v1/aggregates/{aggregate}/proof: address.space everything
        GET    /v1/pools: address.read anywhere
        POST   /v1/pools: address.space everything
        GET    /v1/pools/{pool}: address.read anywhere
        PATCH  /v1/pools/{pool}: address.space everything
        DELETE /v1/pools/{pool}: address.space everything
        POST   /v1/pools/{pool}/prefixes: address.space everything
        GET    /v1/pools/{pool}/space: address.read anywhere
        GET    /v1/pools/{pool}/trend: address.read anywhere
        GET    /v1/utilisation: address.read anywhere
        GET    /v1/utilisation/projects: address.read anywhere
        GET    /v1/utilisation/sites: address.read anywhere
        GET    /v1/assignments: address.read anywhere
        GET    /v1/claims: address.read anywhere
        POST   /v1/claims: address.claim body
        GET    /v1/claims/{claim}: address.read where the claim is
        PATCH  /v1/claims/{claim}: address.claim where the claim is
        DELETE /v1/claims/{claim}: address.claim where the claim is
        GET    /v1/claims/{claim}/grants: address.read where the claim is
        PUT    /v1/claims/{claim}/grants: address.space everything
        DELETE /v1/claims/{claim}/grants: address.space everything
        PUT    /v1/claims/{claim}/announcements/{machine}: address.announce where the claim is
        DELETE /v1/claims/{claim}/announcements/{machine}: address.announce anywhere
        GET    /v1/announcements: address.read anywhere
        GET    /v1/addresses/{address}/history: address.read anywhere
        GET    /v1/addresses/{address}/announcements: address.read anywhere
        GET    /v1/addresses/{address}/blocks: address.read anywhere
        GET    /v1/addresses/{address}/name: address.read anywhere
        PUT    /v1/addresses/{address}/name: address.name body
        DELETE /v1/addresses/{address}/name: address.name body
        GET    /v1/reverse-zone: address.space everything
        GET    /v1/events: event.read anywhere
        GET    /v1/events/stream: event.read anywhere
        GET    /v1/audit: audit.read everything
        GET    /v1/audit/end: audit.read everything
    "#]]
    .assert_eq(&lines);
}

#[tokio::test]
async fn every_operation_lets_in_exactly_who_the_table_of_roles_says() {
    assert_eq!(missing(TABLE), Vec::<String>::new());
    let world = World::new(On::Sqlite).await;
    let wrong = world.walk(TABLE, |role, action| role.may(action), |thing| world.place_of(thing)).await;
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
}

#[tokio::test]
async fn the_walk_finds_mistakes_that_were_planted() {
    let world = World::new(On::Sqlite).await;
    let may = |role: Role, action| role.may(action);
    let without: Vec<_> = TABLE.iter().filter(|(_, path, _)| !path.ends_with("/power")).cloned().collect();
    assert_eq!(missing(without.leak()), ["POST /v1/machines/{machine}/power"]);

    let power = || TABLE.iter().filter(|(_, path, _)| path.ends_with("/power")).cloned().collect::<Vec<_>>().leak();
    let more = |role: Role, action| role.may(action) || (role, action) == (Role::Viewer, Action::MachinePower);
    let wrong = world.walk(power(), more, |thing| world.place_of(thing)).await;
    assert!(wrong.iter().any(|line| line.contains("as viewer of everything: 403")), "{wrong:?}");

    let elsewhere = |thing| match thing {
        Thing::Machine => Place { project: Some(ProjectId::fresh()), ..world.place_of(thing) },
        thing => world.place_of(thing),
    };
    let wrong = world.walk(power(), may, elsewhere).await;
    assert!(wrong.iter().any(|line| line.contains("as collaborator of its project")), "{wrong:?}");
}
