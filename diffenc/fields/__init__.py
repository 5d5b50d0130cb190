"""Typed fields of dataclasses: conversion and checks of the values that users bind."""
