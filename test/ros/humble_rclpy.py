"""rclpy as in Humble: what later distributions added is removed.

    python humble_rclpy.py MODULE ARGUMENT ...     # python -m MODULE, with such an rclpy

Humble is not on the package index. `HUMBLE` is the public API of its rclpy, read from the sources:
github.com/ros2/rclpy, branch humble, 3.3.15, commit b488272b. Modules and classes that are not in
it count as missing: look them up in that branch and add them.
"""

# ruff: noqa: E501  (names, copied from the sources)
from __future__ import annotations

import enum
import functools
import importlib
import runpy
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

HUMBLE: dict[str, str] = {
    'rclpy': 'Context Future Parameter SignalHandlerOptions create_node get_default_context '
    'get_global_executor get_rmw_implementation_identifier init install_signal_handlers ok '
    'shutdown spin spin_once spin_until_future_complete try_shutdown '
    'uninstall_signal_handlers',
    'rclpy.client': 'Client',
    'rclpy.client.Client': 'call call_async callback_group context destroy get_pending_request handle qos_profile '
    'remove_pending_request service_is_ready srv_name srv_type wait_for_service',
    'rclpy.clock': 'Clock ClockChange ClockType JumpHandle JumpThreshold ROSClock TimeJump',
    'rclpy.clock.Clock': 'clock_type create_jump_callback handle now sleep_for sleep_until',
    'rclpy.clock.JumpThreshold': 'min_backward min_forward on_clock_change',
    'rclpy.clock.ROSClock': 'ros_time_is_active set_ros_time_override',
    'rclpy.clock.TimeJump': 'clock_change delta',
    'rclpy.context': 'Context',
    'rclpy.context.Context': 'destroy get_domain_id handle init ok on_shutdown shutdown try_shutdown',
    'rclpy.duration': 'Duration Infinite',
    'rclpy.duration.Duration': 'from_msg get_c_duration nanoseconds to_msg',
    'rclpy.exceptions': 'InvalidHandle InvalidNamespaceException InvalidNodeNameException '
    'InvalidParameterException InvalidParameterTypeException InvalidParameterValueException '
    'InvalidServiceNameException InvalidTopicNameException NameValidationException '
    'NoTypeSupportImportedException NotInitializedException ParameterAlreadyDeclaredException '
    'ParameterException ParameterImmutableException ParameterNotDeclaredException '
    'ParameterUninitializedException ROSInterruptException',
    'rclpy.executors': 'ConditionReachedException Executor ExternalShutdownException MultiThreadedExecutor '
    'ShutdownException SingleThreadedExecutor TimeoutException WaitableEntityType',
    'rclpy.executors.Executor': 'add_node can_execute context create_task get_nodes remove_node shutdown spin spin_once '
    'spin_once_until_future_complete spin_until_future_complete wait_for_ready_callbacks wake',
    'rclpy.executors.MultiThreadedExecutor': 'spin_once spin_once_until_future_complete',
    'rclpy.executors.SingleThreadedExecutor': 'spin_once spin_once_until_future_complete',
    'rclpy.impl.implementation_singleton': 'rclpy_implementation',
    'rclpy.impl.implementation_singleton.rclpy_implementation': 'InvalidHandle NodeNameNonExistentError NotImplementedError RCLError '
    'RCLInvalidROSArgsError RCUtilsError RMWError UnknownROSArgsError '
    'UnsupportedEventTypeError',
    'rclpy.impl.rcutils_logger.RcutilsLogger': 'contexts debug error fatal get_child get_effective_level info is_enabled_for log name '
    'set_level warn warning',
    'rclpy.logging': 'clear_config get_logger get_logger_effective_level get_logging_directory '
    'get_logging_severity_from_string initialize set_logger_level shutdown',
    'rclpy.node': 'HIDDEN_NODE_PREFIX Node NodeNameNonExistentError',
    'rclpy.node.Node': 'PARAM_REL_TOL add_on_set_parameters_callback add_waitable clients context '
    'count_publishers count_subscribers create_client create_guard_condition create_publisher '
    'create_rate create_service create_subscription create_timer declare_parameter '
    'declare_parameters default_callback_group describe_parameter describe_parameters '
    'destroy_client destroy_guard_condition destroy_node destroy_publisher destroy_rate '
    'destroy_service destroy_subscription destroy_timer executor '
    'get_client_names_and_types_by_node get_clock get_fully_qualified_name get_logger '
    'get_name get_namespace get_node_names get_node_names_and_namespaces '
    'get_node_names_and_namespaces_with_enclaves get_parameter get_parameter_or '
    'get_parameter_type get_parameter_types get_parameters get_parameters_by_prefix '
    'get_publisher_names_and_types_by_node get_publishers_info_by_topic '
    'get_service_names_and_types get_service_names_and_types_by_node '
    'get_subscriber_names_and_types_by_node get_subscriptions_info_by_topic '
    'get_topic_names_and_types guards handle has_parameter publishers '
    'remove_on_set_parameters_callback remove_waitable resolve_service_name '
    'resolve_topic_name services set_descriptor set_parameters set_parameters_atomically '
    'subscriptions timers undeclare_parameter waitables',
    'rclpy.parameter': 'PARAMETER_SEPARATOR_STRING Parameter parameter_value_to_python',
    'rclpy.parameter.Parameter': 'from_parameter_msg get_parameter_value name to_parameter_msg type_ value',
    'rclpy.publisher': 'Publisher',
    'rclpy.publisher.Publisher': 'assert_liveliness destroy event_handlers get_subscription_count handle msg_type publish '
    'qos_profile topic topic_name wait_for_all_acked',
    'rclpy.qos': 'DurabilityPolicy HistoryPolicy InvalidQoSProfileException LivelinessPolicy '
    'QoSCompatibility QoSDurabilityPolicy QoSHistoryPolicy QoSLivelinessPolicy QoSPolicyEnum '
    'QoSPolicyKind QoSPresetProfiles QoSProfile QoSReliabilityPolicy ReliabilityPolicy '
    'qos_check_compatible qos_policy_name_from_kind qos_profile_action_status_default '
    'qos_profile_parameter_events qos_profile_parameters qos_profile_sensor_data '
    'qos_profile_services_default qos_profile_system_default qos_profile_unknown',
    'rclpy.qos.DurabilityPolicy': 'SYSTEM_DEFAULT TRANSIENT_LOCAL UNKNOWN VOLATILE',
    'rclpy.qos.HistoryPolicy': 'KEEP_ALL KEEP_LAST SYSTEM_DEFAULT UNKNOWN',
    'rclpy.qos.LivelinessPolicy': 'AUTOMATIC MANUAL_BY_TOPIC SYSTEM_DEFAULT UNKNOWN',
    'rclpy.qos.QoSPolicyEnum': 'get_from_short_key short_key short_keys',
    'rclpy.qos.QoSPolicyKind': 'AVOID_ROS_NAMESPACE_CONVENTIONS DEADLINE DEPTH DURABILITY HISTORY INVALID LIFESPAN '
    'LIVELINESS LIVELINESS_LEASE_DURATION RELIABILITY',
    'rclpy.qos.QoSPresetProfiles': 'ACTION_STATUS_DEFAULT PARAMETERS PARAMETER_EVENTS SENSOR_DATA SERVICES_DEFAULT '
    'SYSTEM_DEFAULT UNKNOWN get_from_short_key short_keys',
    'rclpy.qos.QoSProfile': 'avoid_ros_namespace_conventions deadline depth durability get_c_qos_profile history '
    'lifespan liveliness liveliness_lease_duration reliability',
    'rclpy.qos.ReliabilityPolicy': 'BEST_EFFORT RELIABLE SYSTEM_DEFAULT UNKNOWN',
    'rclpy.qos_event': 'PublisherEventCallbacks QoSEventHandler QoSLivelinessChangedInfo QoSLivelinessLostInfo '
    'QoSMessageLostInfo QoSOfferedDeadlineMissedInfo QoSOfferedIncompatibleQoSInfo '
    'QoSPublisherEventType QoSRequestedDeadlineMissedInfo QoSRequestedIncompatibleQoSInfo '
    'QoSSubscriptionEventType SubscriptionEventCallbacks UnsupportedEventTypeError',
    'rclpy.qos_event.PublisherEventCallbacks': 'create_event_handlers deadline incompatible_qos liveliness use_default_callbacks',
    'rclpy.qos_event.QoSEventHandler': '__enter__ __exit__ add_to_wait_set callback destroy event_type get_num_entities is_ready '
    'take_data',
    'rclpy.qos_event.SubscriptionEventCallbacks': 'create_event_handlers deadline incompatible_qos liveliness message_lost '
    'use_default_callbacks',
    'rclpy.service': 'Service',
    'rclpy.service.Service': 'callback callback_group destroy handle qos_profile send_response srv_name srv_type',
    'rclpy.signals': 'SignalHandlerGuardCondition SignalHandlerOptions get_current_signal_handlers_options '
    'install_signal_handlers uninstall_signal_handlers',
    'rclpy.subscription': 'Subscription',
    'rclpy.subscription.Subscription': 'callback callback_group destroy event_handlers handle msg_type qos_profile raw topic '
    'topic_name',
    'rclpy.task': 'Future Task',
    'rclpy.task.Future': 'add_done_callback cancel cancelled done exception result set_exception set_result',
    'rclpy.task.Task': 'executing',
    'rclpy.time': 'CONVERSION_CONSTANT Time',
    'rclpy.time.Time': 'clock_type from_msg nanoseconds seconds_nanoseconds to_msg',
    'rclpy.timer': 'Rate Timer',
    'rclpy.timer.Rate': 'destroy sleep',
    'rclpy.timer.Timer': 'callback callback_group cancel clock destroy handle is_canceled is_ready reset '
    'time_since_last_call time_until_next_call timer_period_ns',
    'rclpy.topic_endpoint_info': 'TopicEndpointInfo TopicEndpointTypeEnum',
    'rclpy.topic_endpoint_info.TopicEndpointInfo': 'endpoint_gid endpoint_type node_name node_namespace qos_profile topic_type',
    'rclpy.topic_endpoint_info.TopicEndpointTypeEnum': 'INVALID PUBLISHER SUBSCRIPTION',
    'rclpy.type_support': 'check_for_type_support check_is_valid_msg_type check_is_valid_srv_type',
    'rclpy.utilities': 'get_available_rmw_implementations get_default_context get_rmw_implementation_identifier '
    'ok remove_ros_args shutdown timeout_sec_to_nsec try_shutdown',
}
# Parameters that were added to these functions after Humble.
LATER_PARAMETERS = {
    'rclpy.create_node': 'enable_logger_service',
    'rclpy.client.Client.call': 'timeout_sec',
    'rclpy.logging.set_logger_level': 'detailed_error',
    'rclpy.node.Node.__init__': 'enable_logger_service',
    'rclpy.node.Node.create_timer': 'autostart',
    'rclpy.qos_event.PublisherEventCallbacks.__init__': 'incompatible_type matched',
    'rclpy.qos_event.SubscriptionEventCallbacks.__init__': 'incompatible_type matched',
}
# The same module, by the name that it has itself.
HUMBLE['rclpy._rclpy_pybind11'] = HUMBLE['rclpy.impl.implementation_singleton.rclpy_implementation']
MEMBERS = {path.rpartition('.')[2]: set(names.split()) for path, names in HUMBLE.items()}


def find(path: str) -> Any:
    """Return the installed rclpy's module, class or function of this name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of the newer names, which are not Humble's
            return importlib.import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition('.')
        return getattr(find(owner), name)


def is_known(module: str, name: str) -> bool:
    """Return whether Humble's module has this name: defined there, or a module in it."""
    if name in HUMBLE.get(module, '').split():
        return True
    return any(f'{path}.'.startswith(f'{module}.{name}.') for path in HUMBLE)


def added_members(cls: type) -> set[str]:
    """Return the public members of a class of the installed rclpy that Humble's lacks."""
    known = set().union(*(MEMBERS.get(base.__name__, set()) for base in cls.__mro__))
    added = {name for name in vars(cls) if not name.startswith('_')} - known
    # `with context:`, `with executor:`
    return added | ({'__enter__', '__exit__'} & set(vars(cls)) - known)


def classes() -> dict[str, type]:
    """Return the installed rclpy's classes that are in `HUMBLE`."""
    found = {path: find(path) for path in HUMBLE}
    return {path: cls for path, cls in found.items() if isinstance(cls, type)}


def _is_from_outside() -> bool:
    """Return whether the caller was called by code outside rclpy."""
    name = sys._getframe(2).f_globals.get('__name__', '')
    return name.partition('.')[0] != 'rclpy'


class _Module(types.ModuleType):
    def __getattribute__(self, name: str) -> Any:
        if not name.startswith('_') and _is_from_outside():
            path = super().__getattribute__('__name__')
            if not is_known(path, name):
                raise AttributeError(f"Humble's rclpy has no {path}.{name}")
        return super().__getattribute__(name)


class _Denied:
    """A member of a class that only rclpy's own code may use."""

    def __init__(self, name: str, member: Any) -> None:
        self.name, self.member = name, member

    def __get__(self, instance: Any, owner: type) -> Any:
        if _is_from_outside():
            raise AttributeError(f"Humble's rclpy has no {self.name}")
        get = getattr(type(self.member), '__get__', None)
        return self.member if get is None else get(self.member, instance, owner)


class _DeniedProperty(_Denied):
    def __set__(self, instance: Any, value: Any) -> None:
        self.member.__set__(instance, value)


def _without_parameters(path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    later = set(LATER_PARAMETERS[path].split())

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if later & set(kwargs) and _is_from_outside():
            raise TypeError(f"Humble's {path}() has no {', '.join(later & set(kwargs))}")
        return function(*args, **kwargs)

    return called


def deny() -> None:
    """Remove what Humble lacks from all code except rclpy's own; for a separate process."""
    import rclpy

    for path, cls in classes().items():
        if not issubclass(cls, enum.Enum):  # their members cannot be replaced
            for name in added_members(cls):
                member = vars(cls)[name]
                kind = _DeniedProperty if isinstance(member, property) else _Denied
                setattr(cls, name, kind(f'{path}.{name}', member))
    for path in LATER_PARAMETERS:
        owner, _, name = path.rpartition('.')
        function = getattr(find(owner), name)
        setattr(find(owner), name, _without_parameters(path, function))
    init = rclpy.init

    def init_without_a_context(*args: Any, **kwargs: Any) -> None:  # `with rclpy.init():` is later
        init(*args, **kwargs)

    rclpy.init = init_without_a_context
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] == 'rclpy':
            module.__class__ = _Module


if __name__ == '__main__':
    deny()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
