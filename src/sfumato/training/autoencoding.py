"""Where the loss of autoencoders was before it had a name."""

from sfumato.objectives.losses import Autoencoding as Autoencoding
