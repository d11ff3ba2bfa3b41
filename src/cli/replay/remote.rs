//! A server, asked.

use anyhow::Result;

use super::Infer;
use crate::cli::output::Mouth;
use crate::serve::client::{Client, Settings};
use crate::serve::tree::Tree;

/// A connection that is made anew after a refusal: openpi's server ends it then.
#[derive(Debug)]
pub struct Remote {
    settings: Settings,
    client: Option<Client>,
}

impl Remote {
    /// Connects.
    ///
    /// # Errors
    /// Nobody is there, or somebody who speaks another protocol.
    pub fn connect(settings: Settings, mouth: &Mouth) -> Result<Self> {
        let client = Client::connect(&settings, |error| mouth.note(&error.to_string()))?;
        Ok(Remote { settings, client: Some(client) })
    }
}

impl Infer for Remote {
    fn infer(&mut self, message: &Tree) -> Result<Result<Tree, String>> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.settings, |_| {})?,
        };
        let reply = client.infer(message);
        if client.is_sound() {
            self.client = Some(client);
        }
        Ok(reply.map_err(|error| error.to_string()))
    }

    fn name(&self) -> String {
        self.settings.address.to_string()
    }
}
