//! One provider: what it tells of itself, and codes exchanged for what it says of a person.
//!
//! Invariants:
//! - Nothing is followed elsewhere: no redirects, and of a provider by HTTPS nothing by HTTP.
//! - What a provider sends is bounded in size and in time.
//! - A token counts when a key of the provider's signed it, for us, in answer to this login.

use std::{sync::Arc, time::Duration};

use openidconnect::{
    AccessTokenHash, AdditionalClaims, AuthType, AuthenticationFlow, AuthorizationCode, ClaimsVerificationError,
    ClientId, ClientSecret, CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet,
    HttpRequest, HttpResponse, IdTokenFields, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge,
    PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError, StandardErrorResponse,
    StandardTokenResponse, SubjectIdentifier, TokenResponse as _, UserInfoClaims, UserInfoError,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreClientAuthMethod, CoreErrorResponseType, CoreGenderClaim, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreResponseType,
        CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
    },
    http,
};
use rackhand_common::time::Mono;
use reqwest::{Url, redirect};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{
    Config, OidcError,
    identity::{Identity, identity, is_complete},
};

/// How long what a provider tells of itself is believed: so long its old keys count at most.
const FRESH: Duration = Duration::from_secs(600);

/// How long one that could not be reached is left alone.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// How long a provider may take to be connected to, and for an answer: three of them are less than
/// what a request to us may take.
const CONNECT: Duration = Duration::from_secs(4);
const ANSWER: Duration = Duration::from_secs(8);

/// The longest answer.
const LONGEST: usize = 1 << 20;

/// How a token may be signed: by a key that the provider alone has.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// Claims beside the standard's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Others {
    #[serde(flatten)]
    claims: Map<String, Value>,
}

impl AdditionalClaims for Others {}

type Fields = IdTokenFields<
    Others,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type Answer = StandardTokenResponse<Fields, CoreTokenType>;
type Client = openidconnect::Client<
    Others,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// What a provider told of itself, or why nothing.
type Told = Result<Arc<Client>, String>;

/// A provider that is configured.
pub(super) struct Provider {
    pub(super) config: Config,
    pub(super) secret: Option<String>,
    http: reqwest::Client,
    /// What it told of itself last, or that it told nothing; one asks for it at a time.
    known: Mutex<Option<(Mono, Told)>>,
}

/// What was asked for of a provider, and what its answer has to fit.
pub(super) struct Asked {
    pub(super) state: String,
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    redirect: RedirectUrl,
}

/// Why a request of ours was not answered.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("its answer is longer than {LONGEST} bytes")]
    TooLong,
    #[error("its answer cannot be read")]
    Malformed(#[from] http::Error),
}

impl Provider {
    pub(super) fn new(config: Config, secret: Option<String>) -> Result<Self, reqwest::Error> {
        let builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("rackhand-controller/", env!("CARGO_PKG_VERSION")));
        let builder = if config.is_local() { builder.no_proxy() } else { builder.https_only(true) };
        Ok(Self { config, secret, http: builder.build()?, known: Mutex::new(None) })
    }

    /// Where the browser of a person goes to log in, and what has to come of it.
    pub(super) async fn ask(&self, now: Mono, redirect: RedirectUrl) -> Result<(Url, Asked), OidcError> {
        let client = self.client(now, None).await?;
        let client = (*client).clone().set_redirect_uri(redirect.clone());
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let (url, state, nonce) = client
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                CsrfToken::new_random,
                Nonce::new_random,
            )
            .add_scopes(self.config.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(challenge)
            .url();
        Ok((url, Asked { state: state.into_secret(), nonce, verifier, redirect }))
    }

    /// Who logged in, for the code that the browser came back with.
    pub(super) async fn exchange(&self, now: Mono, asked: Asked, code: String) -> Result<Identity, OidcError> {
        let client = self.client(now, None).await?;
        let call = |request: HttpRequest| call(self.http.clone(), request);
        let Asked { nonce, verifier, redirect, .. } = asked;
        let with_code = (*client).clone().set_redirect_uri(redirect);
        let request = with_code.exchange_code(AuthorizationCode::new(code));
        let request = request.map_err(|_| self.unreachable("it tells no token endpoint"))?;
        let answer = request.set_pkce_verifier(verifier).request_async(&call).await.map_err(|error| match error {
            RequestTokenError::ServerResponse(refused) => OidcError::Code(self.issuer(), refused.to_string()),
            RequestTokenError::Request(error) => self.unreachable(&told(&error)),
            other => self.unreachable(&told(&other)),
        })?;
        let mut claims = match verified(&client, &answer, &nonce) {
            // It signs with a new key: what it told of itself is old.
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey | SignatureVerificationError::CryptoError(_),
            )) => {
                let renewed = self.client(now, Some(&client)).await?;
                verified(&renewed, &answer, &nonce)
            }
            verified => verified,
        }
        .map_err(|error| OidcError::Unbelievable(self.issuer(), told(&error)))?;
        if !is_complete(&self.config, &claims) {
            let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
            // What the token says counts more.
            for (claim, value) in self.userinfo(&client, &answer, subject).await? {
                claims.entry(claim).or_insert(value);
            }
        }
        identity(&self.config, &claims)
    }

    /// More claims, from where a provider tells them that keeps its tokens short.
    async fn userinfo(
        &self,
        client: &Client,
        answer: &Answer,
        subject: String,
    ) -> Result<Map<String, Value>, OidcError> {
        let call = |request: HttpRequest| call(self.http.clone(), request);
        let subject = Some(SubjectIdentifier::new(subject));
        let Ok(request) = client.user_info(answer.access_token().clone(), subject) else { return Ok(Map::new()) };
        let claims: Result<UserInfoClaims<Others, CoreGenderClaim>, _> = request.request_async(&call).await;
        let claims = claims.map_err(|error| match error {
            UserInfoError::Request(error) => self.unreachable(&told(&error)),
            other => OidcError::Unbelievable(self.issuer(), told(&other)),
        })?;
        Ok(object(&claims))
    }

    /// What the provider tells of itself, not older than [`FRESH`], nor the same as `old`.
    async fn client(&self, now: Mono, old: Option<&Arc<Client>>) -> Result<Arc<Client>, OidcError> {
        let mut known = self.known.lock().await;
        if let Some((at, told)) = &*known {
            let age = now.0.saturating_sub(at.0);
            match told {
                Ok(client) if age < FRESH && old.is_none_or(|old| !Arc::ptr_eq(old, client)) => {
                    return Ok(client.clone());
                }
                Err(why) if age < LEFT_ALONE => return Err(self.unreachable(why)),
                _ => {}
            }
        }
        let told = self.discover().await.map(Arc::new);
        if let Err(why) = &told {
            tracing::warn!(issuer = self.config.issuer, error = why, "nobody can log in by OpenID Connect");
        }
        let told = &known.insert((now, told)).1;
        told.clone().map_err(|why| self.unreachable(&why))
    }

    async fn discover(&self) -> Result<Client, String> {
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(|error| error.to_string())?;
        let call = |request: HttpRequest| call(self.http.clone(), request);
        let metadata = CoreProviderMetadata::discover_async(issuer, &call).await.map_err(|error| told(&error))?;
        let methods = metadata.token_endpoint_auth_methods_supported();
        let knows = |method| methods.is_some_and(|methods| methods.contains(&method));
        let by_body = knows(CoreClientAuthMethod::ClientSecretPost) && !knows(CoreClientAuthMethod::ClientSecretBasic);
        let (id, secret) = (ClientId::new(self.config.client_id.clone()), self.secret.clone().map(ClientSecret::new));
        let client = Client::from_provider_metadata(metadata, id, secret);
        Ok(if by_body { client.set_auth_type(AuthType::RequestBody) } else { client })
    }

    fn issuer(&self) -> String {
        self.config.issuer.clone()
    }

    fn unreachable(&self, why: &str) -> OidcError {
        OidcError::Unreachable(self.issuer(), why.to_owned())
    }
}

/// The claims of the token in an answer, which is the provider's, for us, of this login.
fn verified(client: &Client, answer: &Answer, nonce: &Nonce) -> Result<Map<String, Value>, ClaimsVerificationError> {
    let other = |why: &str| ClaimsVerificationError::Other(why.to_owned());
    let token = answer.id_token().ok_or_else(|| other("it sent no ID token"))?;
    let verifier = client.id_token_verifier().set_allowed_algs(ALGORITHMS);
    let claims = token.claims(&verifier, nonce)?;
    if let Some(expected) = claims.access_token_hash() {
        let failed = ClaimsVerificationError::SignatureVerification;
        let algorithm = token.signing_alg().map_err(failed)?;
        let key = token.signing_key(&verifier).map_err(failed)?;
        let actual = AccessTokenHash::from_token(answer.access_token(), algorithm, key);
        if actual.map_err(|error| other(&error.to_string()))? != *expected {
            return Err(other("its access token is not the one that the ID token is about"));
        }
    }
    Ok(object(claims))
}

/// Claims as the JSON that they came as.
fn object(claims: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(claims) {
        Ok(Value::Object(claims)) => claims,
        _ => Map::new(),
    }
}

/// An error with its sources.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// One request, and its whole answer.
async fn call(client: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, NoAnswer> {
    let mut response = client.execute(request.try_into()?).await?;
    let mut answer = http::Response::builder().status(response.status());
    for (name, value) in response.headers() {
        answer = answer.header(name, value);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > LONGEST {
            return Err(NoAnswer::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(answer.body(body)?)
}
