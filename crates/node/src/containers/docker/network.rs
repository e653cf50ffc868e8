//! The bridge of containers that serve TCP: they reach the world, and neither each other nor an agent of this host that
//! uses this engine.
//!
//! That they don't reach each other is the bridge's doing (`enable_icc`). This host's own addresses they do reach, any of
//! them, under their own address: by that an agent knows them, and does not answer.

use std::collections::HashMap;

use bollard::models::{Network, NetworkCreateRequest};
use bollard::query_parameters::{ListNetworksOptions, ListNetworksOptionsBuilder};

use super::api::{Api, Failure, LOOK};
use super::labels::NETWORK;
use super::subnet::{LINK_LOCAL, Subnet};
use crate::containers::EngineError;
use crate::data_dir::lock_on_host;

const ICC: &str = "com.docker.network.bridge.enable_icc";

/// The network's id; it is made when there is none.
pub(super) async fn ensure(api: &Api, name: &str) -> Result<String, EngineError> {
    if let Some(id) = find(api, name).await? {
        return Ok(id);
    }
    // The engine would make a second one of the same name for another agent of this host.
    let _alone = lock_on_host(&format!("network-{name}")).await;
    if let Some(id) = find(api, name).await? {
        return Ok(id);
    }
    let label = |key: &str, value: &str| Some(HashMap::from([(key.to_owned(), value.to_owned())]));
    let request = NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        options: label(ICC, "false"),
        labels: label(NETWORK, "true"),
        ..NetworkCreateRequest::default()
    };
    let made = api.within(LOOK, api.docker.create_network(request)).await.map_err(|failure| {
        EngineError::Refused(format!(
            "the network `{name}` for images that serve TCP can't be made: {failure}; make it with `docker network \
             create -o {ICC}=false {name}`, or name another with docker.network"
        ))
    })?;
    tracing::info!(network = name, "a bridge for containers of images was made");
    Ok(made.id)
}

/// Where containers of images are: on the bridge of that name, and on those that other agents of this host made.
pub(super) async fn subnets(api: &Api, name: &str) -> Result<Vec<Subnet>, Failure> {
    let networks = api.within(LOOK, api.docker.list_networks(None::<ListNetworksOptions>)).await?;
    let named = |network: &Network| {
        network.name.as_deref() == Some(name) && network.driver.as_deref() == Some("bridge") && keeps_apart(network)
    };
    let ours = networks.into_iter().filter(|network| named(network) || is_an_agents(network));
    let mut subnets = Vec::new();
    for network in ours {
        let own = network.name.as_deref() == Some(name);
        if network.enable_ipv6 == Some(true) {
            subnets.push(LINK_LOCAL);
        }
        let ranges = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let before = subnets.len();
        subnets.extend(ranges.into_iter().filter_map(|range| range.subnet?.parse::<Subnet>().ok()));
        if own && subnets.len() == before {
            return Err(Failure::Refused(format!(
                "the network `{name}` tells no subnet, so that calls of its containers could not be told apart"
            )));
        }
    }
    Ok(subnets)
}

/// Removes it if it was made by an agent and nobody is on it any more.
pub(super) async fn remove_if_unused(api: &Api, name: &str) {
    if let Ok(Some(network)) = look_up(api, name).await
        && is_an_agents(&network)
        && let Some(id) = network.id
        // The engine itself counts only those that run.
        && api.list(&HashMap::from([("network".to_owned(), vec![id.clone()])])).await.is_ok_and(|on_it| on_it.is_empty())
        && let Err(error) = api.within(LOOK, api.docker.remove_network(&id)).await
    {
        tracing::debug!(network = name, %error, "the network stays");
    }
}

fn keeps_apart(network: &Network) -> bool {
    network.options.as_ref().and_then(|options| options.get(ICC)).is_some_and(|icc| icc == "false")
}

fn is_an_agents(network: &Network) -> bool {
    network.labels.as_ref().is_some_and(|labels| labels.contains_key(NETWORK))
}

async fn find(api: &Api, name: &str) -> Result<Option<String>, EngineError> {
    let Some(network) = look_up(api, name).await? else { return Ok(None) };
    if keeps_apart(&network) {
        return Ok(network.id);
    }
    Err(EngineError::Refused(format!(
        "the network `{name}` lets containers reach each other: remove it with `docker network rm {name}` so that it is \
         made anew with {ICC}=false, or name another with docker.network"
    )))
}

async fn look_up(api: &Api, name: &str) -> Result<Option<Network>, Failure> {
    // The filter takes any name that contains it.
    let filter = HashMap::from([("name", vec![name])]);
    let options = ListNetworksOptionsBuilder::new().filters(&filter).build();
    let mut found = api.within(LOOK, api.docker.list_networks(Some(options))).await?;
    found.retain(|network| network.name.as_deref() == Some(name));
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found.into_iter().next())
}
