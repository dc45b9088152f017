//! The operators' HTTP API, `/v1`. `controller/openapi.json` is its published form and is
//! compared with the code by a test.
//!
//! Invariants:
//! - An operation that is not in [`access::TABLE`] is refused, and [`access`] decides before
//!   any of a body is read.
//! - [`Error`] is the only place that knows status codes of refusals.
//! - Whatever takes long is a run or an import: the answer is 202 and says where to look.
//! - The types that are sent are this module's own: a change of a row or of a domain type does
//!   not change the API by itself.

pub mod access;
mod adoptions;
mod aggregates;
mod announcements;
mod assignments;
mod audit;
mod baselines;
mod bindings;
mod bmcs;
mod campaigns;
mod claims;
mod commission;
pub(crate) mod consoles;
mod dry_run;
mod erasures;
mod error;
mod events;
mod expected_bmcs;
mod extract;
mod fields;
mod firmware;
mod found_bmcs;
mod grants;
mod hardware;
mod health;
mod idempotency;
mod images;
mod login;
mod logs;
mod machines;
mod oidc;
mod organisations;
mod people;
mod plans;
mod pools;
mod projects;
pub(crate) mod prometheus;
mod racks;
mod rate;
mod reinstall;
mod reports;
mod rescue;
mod reverse;
mod runs;
mod sites;
mod ssh_keys;
mod systems;
mod tokens;
mod trace;
mod upkeep;
mod vrfs;

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use rackhand_common::{
    bmc::{
        self,
        baseline::{Answered, Ask},
    },
    health::SeriesQuery,
    id::{AgentId, Epoch, MachineId, RackId},
    time::Clock,
    wire::ControllerResponse,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::Uuid;

pub(crate) use self::events::Event;
pub use self::{
    access::{Caller, fresh_token},
    consoles::{Agents, Opened, Seats},
    error::Error,
    rate::{Rate, USUAL},
};
use crate::{
    addresses::Addresses,
    images::Images,
    oidc::Oidc,
    passwords::Passwords,
    ssh::Door,
    store::{Owner, Store},
    workflows::Unreachable,
};

/// Where the API can be read and tried in a browser.
const REFERENCE: &str = "/v1/reference";

/// How long a request may take that neither uploads nor follows anything.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks a BMC through its rack's agent.
pub type Look =
    dyn Fn(RackId, MachineId, bmc::Look) -> BoxFuture<'static, Result<ControllerResponse, Unreachable>> + Send + Sync;

/// Asks a rack's agent what it kept of a machine's sensor.
pub type SeriesOf =
    dyn Fn(RackId, MachineId, SeriesQuery) -> BoxFuture<'static, Result<ControllerResponse, Unreachable>> + Send + Sync;
/// Asks a rack's agent what it knows of its BMCs.
pub type Standings = dyn Fn(RackId) -> BoxFuture<'static, Vec<bmc::Standing>> + Send + Sync;

/// Has a rack's agent read the BMC of a machine.
pub type BaselineOf =
    dyn Fn(RackId, MachineId, Epoch, Ask) -> BoxFuture<'static, Result<Option<Answered>, Unreachable>> + Send + Sync;

/// What the handlers share.
#[derive(Clone)]
pub struct App {
    /// The database.
    pub store: Store,
    /// Imports and their objects.
    pub images: Images,
    /// Whoever hands addresses out.
    pub addresses: Addresses,
    /// Checks passwords.
    pub passwords: Passwords,
    /// Who vouches for people.
    pub oidc: Oidc,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Called after every commit that changed something in a rack: wakes the workflows and
    /// whoever tells the rack.
    pub changed: Arc<dyn Fn(RackId) + Send + Sync>,
    /// Has the agent of a rack ask the BMC of a machine now.
    pub look: Arc<Look>,
    /// Has the agent of a rack tell what it kept of a machine's sensor.
    pub series: Arc<SeriesOf>,
    /// The racks' agents, for consoles.
    pub agents: Arc<dyn Agents>,
    /// Who has how many consoles open.
    pub seats: Seats,
    /// Where consoles are to be had by SSH, if they are.
    pub ssh: Option<Arc<Door>>,
    /// What the agent of a rack knows of its BMCs.
    pub standings: Arc<Standings>,
    /// Has the agent of a rack read the BMC of a machine.
    pub baseline: Arc<BaselineOf>,
    /// Called while a revocation is being committed: cuts the agent's connection.
    pub cut: Arc<dyn Fn(AgentId) + Send + Sync>,
    /// Makes a fresh enrolment code: its text, and the hash to keep of it.
    pub new_code: Arc<dyn Fn() -> (String, [u8; 32]) + Send + Sync>,
    /// `HOST:PORT` at which agents reach this controller.
    pub agents_address: watch::Receiver<String>,
    /// How often a token may ask.
    pub rate: Rate,
    /// Ends event streams, which otherwise never end.
    pub shutdown: CancellationToken,
}

/// Everything below `/v1`. To be merged with what agents fetch and with the health routes.
pub fn router(app: App) -> Router {
    router_with(app, access::TABLE)
}

fn router_with(app: App, table: access::Table) -> Router {
    let app = dry_run::careful(app);
    let (router, document) = operations().split_for_parts();
    let shapes = fields::Shapes::of(&document);
    let (document, shapes) = (Arc::new(finish(document, &shapes)), Arc::new(shapes));
    router
        .route("/v1/openapi.json", get(async move || Json((*document).clone())))
        .method_not_allowed_fallback(async || Error::method())
        .fallback(async || Error::not_found("there is nothing at this path; /v1/openapi.json lists what there is"))
        .layer(middleware::from_fn_with_state(shapes, fields::sparse))
        .layer(middleware::from_fn_with_state(app.clone(), audit::recorded))
        .layer(middleware::from_fn_with_state(app.clone(), idempotency::once))
        .layer(middleware::from_fn(dry_run::tried))
        .layer(middleware::from_fn_with_state(app.rate.clone(), rate::limited))
        .layer(middleware::from_fn_with_state((app.clone(), table), access::decide))
        .layer(middleware::from_fn(trace::named))
        .with_state(app)
        // Pages, not operations: they show the document, and ask with a token that is typed in.
        .merge(SwaggerUi::new(REFERENCE).config(Config::new(["/v1/openapi.json"])))
}

/// The API's OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    let document = operations().into_openapi();
    let shapes = fields::Shapes::of(&document);
    finish(document, &shapes)
}

fn operations() -> OpenApiRouter<App> {
    let quick = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(whoami))
        .routes(routes!(login::login))
        .routes(routes!(oidc::begin))
        .routes(routes!(oidc::finish))
        .routes(routes!(login::password))
        .routes(routes!(login::enrol_factor))
        .routes(routes!(login::confirm_factor))
        .routes(routes!(login::remove_factor))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(ssh_keys::list, ssh_keys::add))
        .routes(routes!(ssh_keys::remove))
        .routes(routes!(ssh_keys::door))
        .routes(routes!(organisations::list, organisations::create))
        .routes(routes!(organisations::show, organisations::rename, organisations::delete))
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::show, projects::rename, projects::delete))
        .routes(routes!(sites::list, sites::create))
        .routes(routes!(sites::show, sites::rename, sites::delete))
        .routes(routes!(people::list, people::create))
        .routes(routes!(people::show, people::change, people::delete))
        .routes(routes!(bindings::roles))
        .routes(routes!(bindings::list, bindings::grant))
        .routes(routes!(bindings::revoke))
        .routes(routes!(racks::list, racks::create))
        .routes(routes!(racks::show, racks::change))
        .routes(routes!(racks::enrolment_code))
        .routes(routes!(bmcs::list))
        .routes(routes!(bmcs::show, bmcs::set, bmcs::remove))
        .routes(routes!(bmcs::look))
        .routes(routes!(bmcs::rotate))
        .routes(routes!(bmcs::regain))
        .routes(routes!(found_bmcs::list))
        .routes(routes!(expected_bmcs::list, expected_bmcs::import, expected_bmcs::forget))
        .routes(routes!(racks::agents))
        .routes(routes!(prometheus::targets))
        .routes(routes!(racks::revoke))
        .routes(routes!(racks::replace))
        .routes(routes!(machines::list))
        .routes(routes!(machines::show, machines::rename, machines::forget))
        .routes(routes!(machines::adopt))
        .routes(routes!(adoptions::adopt_running))
        .routes(routes!(machines::replace_part))
        .routes(routes!(machines::merge))
        .routes(routes!(machines::assign))
        .routes(routes!(machines::deploy))
        .routes(routes!(machines::release))
        .routes(routes!(machines::power))
        .routes(routes!(reinstall::reinstall))
        .routes(routes!(rescue::rescue))
        .routes(routes!(rescue::leave_rescue))
        .routes(routes!(baselines::show))
        .routes(routes!(baselines::read))
        .routes(routes!(baselines::accept))
        .routes(routes!(upkeep::inspect))
        .routes(routes!(commission::test))
        .routes(routes!(commission::results))
        .routes(routes!(upkeep::maintain))
        .routes(routes!(upkeep::resume))
        .routes(routes!(upkeep::quarantine))
        .routes(routes!(upkeep::retire))
        .routes(routes!(hardware::show))
        .routes(routes!(health::show))
        .routes(routes!(health::set, health::remove))
        .routes(routes!(health::series))
        .routes(routes!(consoles::log))
        .routes(routes!(erasures::of_machine))
        .routes(routes!(erasures::list))
        .routes(routes!(erasures::show))
        .routes(routes!(runs::list))
        .routes(routes!(runs::show))
        .routes(routes!(runs::cancel))
        .routes(routes!(runs::retry))
        .routes(routes!(logs::logs))
        .routes(routes!(events::list))
        .routes(routes!(audit::list))
        .routes(routes!(audit::end))
        .routes(routes!(images::list, images::import))
        .routes(routes!(images::show, images::change, images::delete))
        .routes(routes!(images::check))
        .routes(routes!(firmware::list, firmware::create))
        .routes(routes!(firmware::show, firmware::delete))
        .routes(routes!(firmware::update))
        .routes(routes!(firmware::updates))
        .routes(routes!(campaigns::list, campaigns::create))
        .routes(routes!(campaigns::show, campaigns::change))
        .routes(routes!(plans::list, plans::create))
        .routes(routes!(plans::show, plans::change, plans::delete))
        .routes(routes!(plans::machines))
        .routes(routes!(plans::of_machine))
        .routes(routes!(plans::suggest))
        .routes(routes!(systems::list))
        .routes(routes!(systems::show))
        .routes(routes!(systems::kickstart))
        .routes(routes!(vrfs::list, vrfs::create))
        .routes(routes!(aggregates::list, aggregates::create))
        .routes(routes!(aggregates::delete))
        .routes(routes!(aggregates::prove))
        .routes(routes!(pools::list, pools::create))
        .routes(routes!(pools::show, pools::change, pools::delete))
        .routes(routes!(pools::extend))
        .routes(routes!(reports::of_projects))
        .routes(routes!(reports::of_sites))
        .routes(routes!(reports::space))
        .routes(routes!(reports::trend))
        .routes(routes!(assignments::list))
        .routes(routes!(reverse::show, reverse::set, reverse::remove))
        .routes(routes!(reverse::zone))
        .routes(routes!(reports::utilisation))
        .routes(routes!(claims::list, claims::create))
        .routes(routes!(claims::show, claims::change, claims::release))
        .routes(routes!(claims::history))
        .routes(routes!(claims::blocks))
        .routes(routes!(claims::show_grants, claims::set_grants, claims::remove_grants))
        .routes(routes!(announcements::announce, announcements::withdraw))
        .routes(routes!(announcements::list))
        .routes(routes!(announcements::history))
        .layer(DefaultBodyLimit::max(extract::MAX_BODY))
        .layer(middleware::from_fn(in_time));
    // These end when their client or their body does.
    let long = OpenApiRouter::new()
        .routes(routes!(images::upload))
        .routes(routes!(firmware::upload))
        .routes(routes!(events::follow))
        .routes(routes!(consoles::open))
        .layer(DefaultBodyLimit::disable());
    quick.merge(long)
}

async fn in_time(request: Request, next: Next) -> Response {
    tokio::time::timeout(TIMEOUT, next.run(request)).await.unwrap_or_else(|_| Error::timeout().into_response())
}

/// Who am I
///
/// Whose the token in use is, and what may be done with it.
#[utoipa::path(get, path = "/v1/whoami", tag = "access", responses((status = 200, body = Whoami)))]
async fn whoami(State(app): State<App>, Extension(caller): Extension<Caller>) -> Result<Json<Whoami>, Error> {
    let roles = match caller.owner {
        Owner::Person(person) => app.store.bindings_of(person).await?.into_iter().map(Held::from).collect(),
        Owner::Project(_, role) => vec![Held { role: role.name(), at: format!("project {}", caller.name) }],
    };
    let actions = caller.rights.actions.map(|actions| actions.into_iter().map(|action| action.name()).collect());
    let scopes = caller.rights.scopes.map(|scopes| scopes.iter().map(ToString::to_string).collect());
    let version = env!("CARGO_PKG_VERSION");
    Ok(Json(Whoami { name: caller.name, token: caller.token, roles, actions, scopes, version }))
}

/// The caller.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
struct Whoami {
    /// The person's name, or that of the project whose token it is.
    #[schema(example = "ada")]
    name: String,
    /// The id of the token.
    token: Uuid,
    /// Which roles its owner has, and where.
    roles: Vec<Held>,
    /// The token is only good for these actions; absent for all that the roles may.
    actions: Option<Vec<&'static str>>,
    /// It is only good there, each as KIND and id; absent for everywhere.
    scopes: Option<Vec<String>>,
    /// The controller's version.
    version: &'static str,
}

/// A role that the caller has.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
struct Held {
    /// Its name.
    #[schema(example = "collaborator")]
    role: &'static str,
    /// Where: `everything`, or a kind of scope and its name.
    #[schema(example = "project acme:shop")]
    at: String,
}

impl From<crate::store::Binding> for Held {
    fn from(row: crate::store::Binding) -> Self {
        Self { role: row.role.name(), at: format!("{} {}", row.scope.kind(), row.scope_name).trim_end().to_owned() }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rackhand",
        description = "Bare-metal provisioning: from power-off to a login.\n\n\
            **Names and ids.** Everything has an id (UUIDv7) and most things a name; paths take either.\n\n\
            **Slow work.** Deploying, releasing and switching power answer 202 with a *run*: follow it at its \
            `Location`, or all that happens at `/v1/events/stream`.\n\n\
            **Lists** come in pages: give `next` of one page as `after` for the following one.\n\n\
            **Asking again.** A POST with an `Idempotency-Key` is carried out once: asked again within a day with the \
            same key and body, it does nothing and is answered as before, with `Idempotency-Replayed: true`.\n\n\
            **As much as you need.** Every GET takes `fields=`: `fields=id,name,inventory.cpu.cores` leaves those, of a \
            thing or of each in a page.\n\n\
            **Too much at once.** A token may ask so often each second; beyond that it is answered 429, and \
            `Retry-After` says how many seconds to wait.\n\n\
            **Traces.** Every answer has an `X-Request-Id`, and the trace of your `traceparent` (W3C Trace Context) \
            stands beside it in problems and in the controller's log.\n\n\
            **What you read is what you change.** Whatever can be changed is sent with an `ETag`; an operation on it with that \
            in `If-Match` is refused with 412 when anything about it changed since.\n\n\
            **Trying.** A change with `Dry-Run: true` is carried out in full and taken back: it is refused or answered as it \
            would be, with `Dry-Run: true`, and nothing of it is kept, recorded or done in a rack. Ids and codes in such an \
            answer are nobody's.\n\n\
            **Problems** are `application/problem+json` (RFC 9457). `type` is for programs, `detail` says what to do.\n\n\
            **Who may what.** Everything stands in a place: a rack of a site, a project of an organisation. Roles are \
            granted to people at a scope, and say which actions they may do there; `/v1/roles` lists them. What you \
            may not see is answered as what is not there, with 404; what you may see and not do, with 403.\n\n\
            **Unknown fields** in a body or query are refused: a misspelt option is never silently ignored."
    ),
    tags(
        (name = "access", description = "Who is asking."),
        (name = "people", description = "Who logs in, and which role each has where; tokens."),
        (name = "projects", description = "Organisations and their projects: what machines and addresses are given to."),
        (name = "racks", description = "A rack: one provisioning network with its node and machines; and sites, where racks stand."),
        (name = "agents", description = "The nodes' registrations, and whether they are connected."),
        (name = "bmcs", description = "Machines' management controllers: how they are reached, and what they tell."),
        (name = "machines", description = "Servers: discovered by booting in a rack, adopted by an operator, deployed, released."),
        (name = "images", description = "Operating systems to deploy."),
        (name = "firmware", description = "Firmware, and having it installed."),
        (name = "plans", description = "Classes of machines by what is in them."),
        (name = "erasures", description = "What became of disks when machines were taken back: signed certificates."),
        (name = "runs", description = "Work in progress on machines, and work that has ended."),
        (name = "addresses", description = "IP addresses: aggregates, pools made of them, claims, and who had what when."),
        (name = "events", description = "What happened, in order."),
        (name = "audit", description = "Who changed what through this API, as a chain that shows when it was altered."),
    ),
    components(schemas(error::Problem, audit::Order, machines::Sort, reports::Format, logs::LogFormat)),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token: `rh_` and 43 letters. `rackhand-controller init` prints the first one."))
            .build();
        document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// What programs that are made from the document call an operation: `get_machines`, `get_machine`,
/// `post_machine_deploy`. None has another's.
fn operation_id(method: &str, path: &str) -> String {
    // A word without a plural of its own.
    if (method, path) == ("get", "/v1/firmware") {
        return "get_all_firmware".to_owned();
    }
    let parts: Vec<_> = path.trim_start_matches("/v1/").split('/').collect();
    let mut words = vec![method.to_owned()];
    for (at, part) in parts.iter().enumerate() {
        let is_named = parts.get(at + 1).is_some_and(|next| next.starts_with('{'));
        // The name of one stands for where it is listed.
        if !is_named || at > 0 {
            words.push(part.trim_matches(['{', '}']).replace(['-', '.'], "_"));
        }
    }
    words.join("_")
}

/// Values that are replaced as a whole, as they were read.
const VALUES: [&str; 4] = [
    "/v1/claims/{claim}/grants",
    "/v1/addresses/{address}/name",
    "/v1/racks/{rack}/bmcs/{machine}",
    "/v1/racks/{rack}/firmware-campaigns/{campaign}",
];

/// Adds to every operation what is the same for all: the answer when something is wrong, the
/// key of a POST, and the fields of a GET.
fn finish(mut document: utoipa::openapi::OpenApi, shapes: &fields::Shapes) -> utoipa::openapi::OpenApi {
    use utoipa::openapi::{
        ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, ResponseBuilder, Type,
        path::{ParameterBuilder, ParameterIn},
    };
    let problem = ResponseBuilder::new()
        .description("A problem; see its `type` and `detail`.")
        .content(
            "application/problem+json",
            ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
        )
        .build();
    let text = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let key = ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .description(Some("Names this request: asked again with the same key, it does nothing again."))
        .schema(Some(text.max_length(Some(idempotency::MAX_KEY))))
        .build();
    let expected = ParameterBuilder::new()
        .name("If-Match")
        .parameter_in(ParameterIn::Header)
        .description(Some("The `ETag` of the thing as you read it: refused with 412 when it changed since."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    let tag = HeaderBuilder::new()
        .description(Some("Its version: give it as `If-Match` to change just this one."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    let sparse = ParameterBuilder::new()
        .name(fields::PARAMETER)
        .parameter_in(ParameterIn::Query)
        .description(Some("Only these fields of the answer, separated by commas; `a.b` is `b` in `a`."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    for path in shapes.paths() {
        if let Some(get) = document.paths.paths.get_mut(path).and_then(|item| item.get.as_mut()) {
            get.parameters.get_or_insert_default().push(RefOr::T(sparse.clone()));
        }
    }
    let dry = ParameterBuilder::new()
        .name("Dry-Run")
        .parameter_in(ParameterIn::Header)
        .description(Some("`true`: carried out and taken back, to see what would be answered."))
        .schema(Some(ObjectBuilder::new().schema_type(Type::Boolean)))
        .build();
    for (at, item) in &mut document.paths.paths {
        let guarded = item.patch.is_some()
            || at == "/v1/pools/{pool}/prefixes"
            || VALUES.contains(&at.as_str())
            || at.starts_with("/v1/machines/{machine}") && !at.ends_with("/merge");
        if let (true, Some(RefOr::T(read))) = (
            item.patch.is_some() || VALUES.contains(&at.as_str()),
            item.get.as_mut().and_then(|get| get.responses.responses.get_mut("200")),
        ) {
            read.headers.insert("ETag".into(), RefOr::T(tag.clone()));
        }
        let replaced = item.put.as_mut().filter(|_| item.patch.is_none());
        let verbs = [item.post.as_mut(), item.patch.as_mut(), item.delete.as_mut(), replaced];
        for operation in verbs.into_iter().flatten().filter(|_| guarded) {
            operation.parameters.get_or_insert_default().push(RefOr::T(expected.clone()));
        }
        if let Some(post) = &mut item.post {
            post.parameters.get_or_insert_default().push(RefOr::T(key.clone()));
        }
        let changes = [
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
            (Method::PATCH, &mut item.patch),
        ];
        for (_, operation) in changes.into_iter().filter(|(method, _)| dry_run::can_be_tried(method, at)) {
            if let Some(operation) = operation {
                operation.parameters.get_or_insert_default().push(RefOr::T(dry.clone()));
            }
        }
        let operations = [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("delete", &mut item.delete),
            ("patch", &mut item.patch),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            operation.operation_id = Some(operation_id(method, at));
            operation.responses.responses.insert("default".into(), RefOr::T(problem.clone()));
        }
    }
    document
}

#[cfg(test)]
mod people_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
