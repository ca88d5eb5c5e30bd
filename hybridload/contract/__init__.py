"""Contracts: interface -> methods -> messages; values <-> protobuf; .proto text out.

Importing this loads no protobuf, and neither does completing a contract that has hints alone.
"""

from hybridload.contract.exceptions import Status, decode_exception, encode_exception
from hybridload.contract.hints import Field
from hybridload.contract.idempotent import idempotent, is_idempotent
from hybridload.contract.netrpc import NetRPC, NetRPCMethod
from hybridload.contract.service import Contract, Kind, Method, Objects, Parameter, Service, as_contract

__all__ = [
    "Contract",
    "Field",
    "Kind",
    "Method",
    "NetRPC",
    "NetRPCMethod",
    "Objects",
    "Parameter",
    "Service",
    "Status",
    "as_contract",
    "decode_exception",
    "encode_exception",
    "idempotent",
    "is_idempotent",
]
