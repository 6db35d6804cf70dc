// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#include "ub-net-device.h"

#include "ns3/log.h"
#include "ns3/node.h"
#include "ns3/packet.h"
#include "ns3/uinteger.h"

namespace ns3
{

NS_LOG_COMPONENT_DEFINE("UbNetDevice");

NS_OBJECT_ENSURE_REGISTERED(UbChannel);
NS_OBJECT_ENSURE_REGISTERED(UbNetDevice);

TypeId
UbChannel::GetTypeId()
{
    static TypeId tid = TypeId("ns3::UbChannel")
                            .SetParent<Channel>()
                            .SetGroupName("UbFabric")
                            .AddConstructor<UbChannel>();
    return tid;
}

void
UbChannel::DoDispose()
{
    m_devices.clear();
    m_fabric = nullptr;
    Channel::DoDispose();
}

void
UbChannel::SetFabric(Ptr<UbFabric> fabric)
{
    m_fabric = fabric;
    m_fabric->ExpectDevices();
}

Ptr<UbFabric>
UbChannel::GetFabric() const
{
    return m_fabric;
}

void
UbChannel::Add(Ptr<UbNetDevice> device)
{
    m_devices.push_back(device);
}

Ptr<UbNetDevice>
UbChannel::Find(const Mac48Address& address) const
{
    for (const auto& device : m_devices)
    {
        if (Mac48Address::ConvertFrom(device->GetAddress()) == address)
        {
            return device;
        }
    }
    return nullptr;
}

std::size_t
UbChannel::GetNDevices() const
{
    return m_devices.size();
}

Ptr<NetDevice>
UbChannel::GetDevice(std::size_t i) const
{
    return m_devices[i];
}

TypeId
UbNetDevice::GetTypeId()
{
    static TypeId tid =
        TypeId("ns3::UbNetDevice")
            .SetParent<NetDevice>()
            .SetGroupName("UbFabric")
            .AddConstructor<UbNetDevice>()
            .AddAttribute("Mtu",
                          "Largest packet, without the fabric's header, in bytes; not above the "
                          "fabric's PayloadBytes.",
                          UintegerValue(1500),
                          MakeUintegerAccessor(&UbNetDevice::SetMtu, &UbNetDevice::GetMtu),
                          MakeUintegerChecker<uint16_t>(1))
            .AddAttribute("Network",
                          "Network that the packets take: 0 UB, 1 RDMA, 2 VPC.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbNetDevice::m_network),
                          MakeUintegerChecker<uint32_t>())
            .AddAttribute("VirtualLane",
                          "Virtual lane that the packets take.",
                          UintegerValue(0),
                          MakeUintegerAccessor(&UbNetDevice::m_lane),
                          MakeUintegerChecker<uint8_t>(0, 15))
            .AddTraceSource("MacTx",
                            "A packet is handed to the fabric.",
                            MakeTraceSourceAccessor(&UbNetDevice::m_macTx),
                            "ns3::Packet::TracedCallback")
            .AddTraceSource("MacTxDrop",
                            "A packet is refused: nobody has the address, it is too large, or no "
                            "plane leads there.",
                            MakeTraceSourceAccessor(&UbNetDevice::m_macTxDrop),
                            "ns3::Packet::TracedCallback")
            .AddTraceSource("MacRx",
                            "A packet has arrived.",
                            MakeTraceSourceAccessor(&UbNetDevice::m_macRx),
                            "ns3::Packet::TracedCallback");
    return tid;
}

UbNetDevice::UbNetDevice()
    : m_address(Mac48Address::Allocate())
{
    NS_LOG_FUNCTION(this);
}

UbNetDevice::~UbNetDevice()
{
    NS_LOG_FUNCTION(this);
}

void
UbNetDevice::DoDispose()
{
    NS_LOG_FUNCTION(this);
    m_channel = nullptr;
    m_node = nullptr;
    m_receive.Nullify();
    m_promiscuous.Nullify();
    NetDevice::DoDispose();
}

void
UbNetDevice::Attach(Ptr<UbChannel> channel, uint32_t endpoint)
{
    NS_LOG_FUNCTION(this << channel << endpoint);
    m_channel = channel;
    m_endpoint = endpoint;
    channel->Add(this);
    m_linkChange();
}

uint32_t
UbNetDevice::GetEndpoint() const
{
    return m_endpoint;
}

uint32_t
UbNetDevice::GetNetwork() const
{
    return m_network;
}

uint8_t
UbNetDevice::GetLane() const
{
    return m_lane;
}

bool
UbNetDevice::Send(Ptr<Packet> packet, const Address& dest, uint16_t protocolNumber)
{
    NS_LOG_FUNCTION(this << packet << dest << protocolNumber);
    if (!m_channel || packet->GetSize() > m_mtu)
    {
        m_macTxDrop(packet);
        return false;
    }
    const Mac48Address address = Mac48Address::ConvertFrom(dest);
    const Ptr<UbFabric> fabric = m_channel->GetFabric();
    if (address.IsBroadcast() || address.IsGroup())
    {
        m_macTx(packet);
        for (std::size_t i = 0; i < m_channel->GetNDevices(); ++i)
        {
            const auto other = DynamicCast<UbNetDevice>(m_channel->GetDevice(i));
            if (other != this && fabric->Reaches(m_endpoint, other->GetEndpoint(), m_network))
            {
                fabric->SendFromDevice(this, other, packet->Copy(), protocolNumber);
            }
        }
        return true;
    }
    const Ptr<UbNetDevice> other = m_channel->Find(address);
    if (!other || other == this || !fabric->Reaches(m_endpoint, other->GetEndpoint(), m_network))
    {
        m_macTxDrop(packet);
        return false;
    }
    m_macTx(packet);
    fabric->SendFromDevice(this, other, packet->Copy(), protocolNumber);
    return true;
}

bool
UbNetDevice::SendFrom(Ptr<Packet> /* packet */,
                      const Address& /* source */,
                      const Address& /* dest */,
                      uint16_t /* protocolNumber */)
{
    return false;
}

void
UbNetDevice::Receive(Ptr<Packet> packet,
                     uint16_t protocol,
                     Ptr<UbNetDevice> from,
                     Ptr<UbNetDevice> to)
{
    NS_LOG_FUNCTION(this << packet << protocol);
    m_macRx(packet);
    if (!m_promiscuous.IsNull())
    {
        m_promiscuous(this,
                      packet->Copy(),
                      protocol,
                      from->GetAddress(),
                      to->GetAddress(),
                      NetDevice::PACKET_HOST);
    }
    if (!m_receive.IsNull())
    {
        m_receive(this, packet, protocol, from->GetAddress());
    }
}

void
UbNetDevice::SetIfIndex(const uint32_t index)
{
    m_ifIndex = index;
}

uint32_t
UbNetDevice::GetIfIndex() const
{
    return m_ifIndex;
}

Ptr<Channel>
UbNetDevice::GetChannel() const
{
    return m_channel;
}

void
UbNetDevice::SetAddress(Address address)
{
    m_address = Mac48Address::ConvertFrom(address);
}

Address
UbNetDevice::GetAddress() const
{
    return m_address;
}

bool
UbNetDevice::SetMtu(const uint16_t mtu)
{
    if (m_channel && mtu > m_channel->GetFabric()->GetPayloadBytes())
    {
        return false;
    }
    m_mtu = mtu;
    return true;
}

uint16_t
UbNetDevice::GetMtu() const
{
    return m_mtu;
}

bool
UbNetDevice::IsLinkUp() const
{
    return m_channel != nullptr;
}

void
UbNetDevice::AddLinkChangeCallback(Callback<void> callback)
{
    m_linkChange.ConnectWithoutContext(callback);
}

bool
UbNetDevice::IsBroadcast() const
{
    return true;
}

Address
UbNetDevice::GetBroadcast() const
{
    return Mac48Address::GetBroadcast();
}

bool
UbNetDevice::IsMulticast() const
{
    return true;
}

Address
UbNetDevice::GetMulticast(Ipv4Address multicastGroup) const
{
    return Mac48Address::GetMulticast(multicastGroup);
}

Address
UbNetDevice::GetMulticast(Ipv6Address addr) const
{
    return Mac48Address::GetMulticast(addr);
}

bool
UbNetDevice::IsBridge() const
{
    return false;
}

bool
UbNetDevice::IsPointToPoint() const
{
    return false;
}

Ptr<Node>
UbNetDevice::GetNode() const
{
    return m_node;
}

void
UbNetDevice::SetNode(Ptr<Node> node)
{
    m_node = node;
}

bool
UbNetDevice::NeedsArp() const
{
    return true;
}

void
UbNetDevice::SetReceiveCallback(NetDevice::ReceiveCallback cb)
{
    m_receive = cb;
}

void
UbNetDevice::SetPromiscReceiveCallback(PromiscReceiveCallback cb)
{
    m_promiscuous = cb;
}

bool
UbNetDevice::SupportsSendFrom() const
{
    return false;
}

} // namespace ns3
