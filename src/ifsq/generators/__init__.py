"""Generators of codes given a class: autoregressive and diffusion, behind one face."""
